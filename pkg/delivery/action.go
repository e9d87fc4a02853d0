package delivery

import "time"

// Action is what a [Machine] wants done next: one of the types below. The caller
// does it and passes the outcome to Step, as an [Event]. Where an action fills
// fields of the event, its comment names them.
type Action any

// The actions that find out where the partition is.
type (
	// ReadPosition reads what the group has committed: Offset, negative when there
	// is nothing, Epoch and Metadata.
	ReadPosition struct{}
	// ReadBounds reads Start, the first offset of the log, and End, the one after
	// its last.
	ReadBounds struct{}
	// ReadEpochEnd reads End, where the log of a leader epoch ends; negative when
	// nobody knows.
	ReadEpochEnd struct{ Epoch int32 }
	// ReadTime reads First, the timestamp of the record at Offset in milliseconds;
	// 0 when the log has no record there.
	ReadTime struct{ Offset int64 }
	// RebuildWindow reads as much of the log [Start, From) as the deduplication
	// window reaches back, and fills Epoch.
	RebuildWindow struct{ Start, From int64 }
)

// The actions that fill the batch.
type (
	// Fetch takes the records from Offset on into the batch, or waits for some. It
	// fills Next, Epoch, End and Due; and Offset and First of its first record,
	// where Offset is negative when there is none.
	Fetch struct{ Offset int64 }
	// TakeRange opens a batch and takes the records of [From, To) into it. It fills
	// Epoch.
	TakeRange struct{ From, To int64 }
	// TakeResent looks up the records that may have been delivered before, and
	// takes the missing ones into the batch.
	TakeResent struct{}
)

// The actions that store the batch. Rows are numbered from 0: those of the
// batch's block, and once Load has read the records again, those of the records.
type (
	// CommitOffset commits Offset, and Commit with it. Epoch is that of the last
	// record before Offset.
	CommitOffset struct {
		Offset int64
		Epoch  int32
		Commit Commit
	}
	// Settle ends the partition's inserts that still run at the shard, and is done
	// when they have ended.
	Settle struct{}
	// LookUp asks which rows are stored at the shard, or with AnyShard at any, and
	// fills Missing with the others. Nil rows are all of the block.
	LookUp struct {
		Rows     []int
		AnyShard bool
	}
	// KeepMissing leaves only those rows in the block that LookUp found missing.
	KeepMissing struct{}
	// Load reads the records of the batch again, so that some of their rows can be
	// inserted. It fills Rows.
	Load struct{}
	// Insert stores rows as one block under a token, and fills Again. Nil rows are all
	// of the block.
	Insert struct {
		Token string
		Rows  []int
	}
	// ProduceLetters hands the batch's dead letters to Kafka.
	ProduceLetters struct{}
)

// The actions that let time pass.
type (
	// Wait waits for Delay before Operation is tried again.
	Wait struct {
		Operation string
		Err       error // why it failed
		Attempt   int   // how often it has failed
		Delay     time.Duration
	}
	// Stop gives the partition up. It has no outcome. Err is nil when the partition
	// was given up before.
	Stop struct{ Err error }
)

// Operation names an action in logs and metrics; empty for those that are not
// tried again by themselves.
func Operation(a Action) string {
	switch a := a.(type) {
	case Fetch:
		return "fetch"
	case TakeResent:
		return "look up resent"
	case LookUp:
		return "look up"
	case Settle:
		return "end inserts"
	case Insert:
		return "insert"
	case ProduceLetters:
		return "produce dead letters"
	case CommitOffset:
		if a.Commit.Plan.To != 0 {
			return "commit plan"
		}
		return "commit"
	default:
		return ""
	}
}

// graceful reports whether an action may still begin while the partition is
// being given up, because it ends the work in flight.
func graceful(a Action) bool {
	switch a := a.(type) {
	case Insert, ProduceLetters, Stop:
		return true
	case CommitOffset:
		return a.Commit.Plan.To == 0
	default:
		return false
	}
}

// Outcome says how an action ended.
type Outcome uint8

// Outcomes of any action.
const (
	OK Outcome = iota
	// Failed means that the action may be tried again. Whether a failed insert has
	// stored rows is unknown.
	Failed
	// LogChanged means that the log is not as it was when the batch was read.
	LogChanged
	// TopicChanged means that the topic was deleted or created again.
	TopicChanged
	// Fenced means that the partition is somebody else's, or may be.
	Fenced
)

// Outcomes of Fetch.
const (
	// OutOfRange means that the log does not have the offset.
	OutOfRange Outcome = iota + 10
	// Corrupt means that the records of [Offset, Next) cannot be read.
	Corrupt
)

// Outcomes of Insert. Whether rows are stored is unknown after all but Expired.
const (
	// Expired means that nothing was sent: the lease of the partition had ended.
	Expired Outcome = iota + 20
	// Answered means that ClickHouse itself reported an error, and so has ended. For
	// a while the machine sends the same rows under the same token again without a
	// look. Where rows of others went along, so that the next attempt is another
	// block for ClickHouse, the outcome is Failed.
	Answered
	// TooMuch is Answered with an error that a smaller block might not meet.
	TooMuch
	// Refused means that ClickHouse refused values.
	Refused
)

// Event is the outcome of the last action. Fields that the action does not fill
// are ignored.
type Event struct {
	Outcome Outcome
	Err     error // nil when the outcome is OK

	Offset, Next int64
	Start, End   int64
	First        int64 // a timestamp in milliseconds, 0 when unknown
	Epoch        int32 // leader epoch of the last record that was read, -1 when unknown
	Metadata     string
	Missing      []int // rows that are not stored
	Rows         int
	Due          bool // the batch is to be stored
	Again        bool // the rows were sent more than once, so success proves nothing

	Batch Batch
}

// Batch is what the batch holds after an action. It is zero when there is none.
type Batch struct {
	Rows    int  // in the block
	Resent  int  // records that wait for TakeResent
	Letters int  // dead letters
	Full    bool // no more records may be taken
}

// Moment is what holds when an action has ended.
type Moment struct {
	Time time.Time // with its reading of the monotonic clock, if there is one
	// Stopping means that the partition is being given up: only the block under way
	// may still be stored.
	Stopping bool
	// Accepted counts the blocks that the partition's shard has taken from any
	// partition of this writer.
	Accepted int64
	// ViewsFail means that the shard's last answer was a [ViewFailed], not a
	// [ViewsWork].
	ViewsFail bool
}

// Note tells the caller of something that needs no answer: one of the types
// below. The caller heeds notes in their order, before the next action.
type Note any

// The notes that change what the caller holds.
type (
	// Drop forgets the batch, if there is one.
	Drop struct{}
	// SetShard makes the rows go to another shard. There is no batch.
	SetShard struct{ Shard int }
	// Seek sets what the next fetch from Offset checks: the record before was of
	// this leader epoch, or -1 takes the log as it is.
	Seek struct {
		Offset int64
		Epoch  int32
	}
	// DivertCorrupt makes a dead letter of the records of [Offset, Next), opening a
	// batch if there is none.
	DivertCorrupt struct {
		Offset, Next int64
		Err          error
	}
	// Divert makes dead letters of refused rows.
	Divert struct{ Refused []RefusedRow }
)

// RefusedRow is a row, of those that Load has read, that ClickHouse refused.
type RefusedRow struct {
	Row int
	Err error
}

// The notes for operators.
type (
	// TakenOver says where the partition goes on. Records before Unsure may be
	// stored already.
	TakenOver struct{ From, PlannedTo, Unsure, End int64 }
	// Doubted reports that the committed offset does not prove what is stored from From on.
	Doubted struct {
		Why              Doubt
		From, Start, End int64
	}
	// PlanDropped reports that the log does not have the planned records any more.
	PlanDropped struct{ From, To, PlannedFirst, First int64 }
	// RangeResumed reports that the planned range of an earlier owner was read again.
	RangeResumed struct{}
	// RecordsLost reports that retention deleted [From, Start) before it was read.
	RecordsLost struct{ From, Start, End int64 }
	// RowsFound reports that rows of the block were stored already.
	RowsFound struct {
		Token          string
		Found, Missing int
	}
	// TokenWithoutRows reports that ClickHouse knows a token but lacks its rows.
	TokenWithoutRows struct{}
	// ViewsWork reports that an insert succeeded at once.
	ViewsWork struct{}
	// ViewFailed reports that an insert failed after its rows were stored, so that a view
	// that depends on the table may lack them.
	ViewFailed struct {
		Found int
		Err   error
	}
	// Bisecting reports that ClickHouse refused the block, and its rows are tried.
	Bisecting struct{ Err error }
	// Stored reports that everything before the committed offset is stored or diverted.
	Stored struct {
		Rows        int // of the batch, stored by any writer
		UnsureFound int // part of Rows: stored by an unknown writer
		Refused     int // of Rows, how many were diverted
		Letters     int
		From, To    int64
	}
)

// Doubt is the reason why a committed offset does not prove what is stored.
type Doubt string

// The reasons for a doubt.
const (
	DoubtNone      Doubt = "none"        // nothing was committed, or it has expired
	DoubtForeign   Doubt = "not ours"    // an operator or an older version committed it
	DoubtTopic     Doubt = "other topic" // it is of a topic of the same name that was deleted
	DoubtTruncated Doubt = "truncated"   // the log has lost records before it
)
