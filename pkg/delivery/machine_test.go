package delivery_test

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/metaflowys/metaflow-server/pkg/delivery"
)

var update = flag.Bool("update", false, "rewrite what the stories say the machine does")

// Each file of testdata is a story of one partition. A line that is not indented
// is what happens; the indented lines after it are what the machine wants then:
// notes in parentheses, and behind the arrow the next action. Lines that begin
// with # tell the story. teller.event says which words a line may have.
func TestStories(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no stories: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			got := tell(t, string(want))
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("%s (-want +got; -update rewrites it):\n%s", file, diff)
			}
		})
	}
}

// tell returns the story with what the machine says today.
func tell(t *testing.T, story string) string {
	teller := &teller{t: t}
	var out strings.Builder
	for _, line := range strings.SplitAfter(story, "\n") {
		text := strings.TrimSuffix(line, "\n")
		switch {
		case strings.HasPrefix(text, " "):
			continue // said anew
		case text == "", strings.HasPrefix(text, "#"):
			out.WriteString(line)
			continue
		}
		out.WriteString(line)
		out.WriteString(teller.event(text))
	}
	return out.String()
}

// teller drives one machine, and holds what its caller would.
type teller struct {
	t       *testing.T
	machine *delivery.Machine
	action  delivery.Action
	at      delivery.Moment
	batch   delivery.Batch
	missing int
	unique  int
	shards  int
	topicID string
	silent  bool
}

var outcomes = map[string]delivery.Outcome{
	"failed": delivery.Failed, "log-changed": delivery.LogChanged, "topic-changed": delivery.TopicChanged, "fenced": delivery.Fenced,
	"out-of-range": delivery.OutOfRange, "corrupt": delivery.Corrupt,
	"expired": delivery.Expired, "answered": delivery.Answered, "too-much": delivery.TooMuch, "refused": delivery.Refused,
}

// event passes one line of a story to the machine and returns what it says.
//
//	start [shards=N] [topic=ID]     an owner takes the partition over
//	reading FROM-END ...            the same, up to its first fetch; what was committed is ours
//	stopping                        from now on the partition is being given up
//	position OFFSET|none [epoch=N] [metadata ...]
//	bounds FROM-TO                  the log
//	end OFFSET|unknown              of a leader epoch
//	fetched FROM-TO|nothing [epoch=N] [first=N] [end=N] [due]
//	missing all|none|ROW...         rows that are not stored
//	ok [again]                      any action succeeded; time passes after a wait
//	OUTCOME [FROM-TO] [text ...]    it did not, see outcomes
//
// Any event may begin with +DURATION, which passes before it, and have rows=N,
// resent=N, letters=N or full, which the batch holds then, loaded=N for what Load
// has read, and accepted=N or views=fail, which holds for the shard.
func (s *teller) event(line string) string {
	s.t.Helper()
	words := strings.Fields(line)
	if d, ok := strings.CutPrefix(words[0], "+"); ok {
		s.at.Time = s.at.Time.Add(must(time.ParseDuration(d)))
		words = words[1:]
	}
	e := delivery.Event{Epoch: -1}
	var rest []string
	s.batch.Full = false
	for i, word := range words[1:] {
		key, value, _ := strings.Cut(word, "=")
		if key == "text" || key == "metadata" {
			text := strings.Join(words[i+2:], " ")
			e.Metadata, e.Err = text, errors.New(text)
			break
		}
		n, _ := strconv.ParseInt(value, 10, 64)
		switch key {
		case "epoch":
			e.Epoch = int32(n)
		case "first":
			e.First = n
		case "end":
			e.End = n
		case "due":
			e.Due = true
		case "again":
			e.Again = true
		case "rows":
			s.batch.Rows, e.Rows = int(n), int(n)
		case "loaded":
			e.Rows = int(n)
		case "resent":
			s.batch.Resent = int(n)
		case "letters":
			s.batch.Letters = int(n)
		case "full":
			s.batch.Full, e.Due = true, true
		case "accepted":
			s.at.Accepted = n
		case "views":
			s.at.ViewsFail = value == "fail"
		case "shards":
			s.shards = int(n)
		case "topic":
			s.topicID = value
		default:
			rest = append(rest, word)
		}
	}
	switch verb := words[0]; verb {
	case "start":
		return s.start()
	case "stopping":
		s.at.Stopping = true
		return ""
	case "reading":
		s.silent = true
		s.start()
		from, to := span(rest)
		s.step(delivery.Event{Offset: from, Epoch: e.Epoch, Metadata: fmt.Sprintf("metaflow at=%d", from)})
		s.step(delivery.Event{Start: 0, End: to})
		if e.Epoch >= 0 {
			s.step(delivery.Event{End: to})
		}
		s.silent = false
		return s.step(delivery.Event{Epoch: e.Epoch})
	case "position":
		e.Offset = -1
		if rest[0] != "none" {
			e.Offset = number(rest[0])
		}
	case "bounds":
		e.Start, e.End = span(rest)
	case "end":
		e.End = -1
		if rest[0] != "unknown" {
			e.End = number(rest[0])
		}
	case "fetched":
		fetch, ok := s.action.(delivery.Fetch)
		if !ok {
			return s.unexpected(line)
		}
		e.Offset, e.Next = -1, fetch.Offset
		if rest[0] != "nothing" {
			e.Offset, e.Next = span(rest)
		}
		e.End = max(e.End, e.Next)
	case "missing":
		look, ok := s.action.(delivery.LookUp)
		if !ok {
			return s.unexpected(line)
		}
		for i := range s.batch.Rows {
			if rest[0] == "all" {
				e.Missing = append(e.Missing, i)
			}
		}
		for _, word := range rest {
			if word != "all" && word != "none" {
				e.Missing = append(e.Missing, int(number(word)))
			}
		}
		if look.Rows != nil && rest[0] == "all" {
			e.Missing = look.Rows
		}
		s.missing = len(e.Missing)
	case "ok":
		switch a := s.action.(type) {
		case delivery.Wait:
			s.at.Time = s.at.Time.Add(a.Delay)
		case delivery.KeepMissing:
			s.batch.Rows = s.missing
		case delivery.TakeResent:
			s.batch.Resent = 0
		case delivery.Load:
			if e.Rows == 0 {
				e.Rows = s.batch.Rows
			}
		}
	default:
		outcome, ok := outcomes[verb]
		if !ok {
			s.t.Fatalf("%q is no event", line)
		}
		e.Outcome = outcome
		if len(rest) > 0 {
			e.Offset, e.Next = span(rest)
		}
		if e.Err == nil {
			e.Err = errors.New(verb)
		}
	}
	return s.step(e)
}

// unexpected reports an event that is no outcome of the action.
func (s *teller) unexpected(line string) string {
	s.t.Errorf("%q, but the machine wants to %s", line, actionText(s.action))
	return ""
}

func (s *teller) start() string {
	if s.shards == 0 {
		s.shards = 2
	}
	s.at = delivery.Moment{Time: time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)}
	s.batch = delivery.Batch{}
	s.machine = delivery.NewMachine(delivery.Partition{
		Topic: "spans", Number: 3, TopicID: s.topicID, Shards: s.shards,
		Unique: func() string { s.unique++; return strconv.Itoa(s.unique) },
	})
	return s.say(s.machine.Start(s.at))
}

func (s *teller) step(e delivery.Event) string {
	if _, stopped := s.action.(delivery.Stop); stopped {
		s.t.Fatal("the machine has stopped")
	}
	e.Batch = s.batch
	return s.say(s.machine.Step(s.at, e))
}

func (s *teller) say(notes []delivery.Note, action delivery.Action) string {
	var out strings.Builder
	for _, note := range notes {
		switch n := note.(type) {
		case delivery.Drop:
			s.batch = delivery.Batch{}
			continue // of no interest
		case delivery.Divert:
			s.batch.Letters += len(n.Refused)
		case delivery.DivertCorrupt:
			s.batch.Letters++
		}
		fmt.Fprintf(&out, "  (%s)\n", noteText(note))
	}
	s.action = action
	fmt.Fprintf(&out, "  -> %s\n", actionText(action))
	if s.silent {
		return ""
	}
	return out.String()
}

func actionText(action delivery.Action) string {
	switch a := action.(type) {
	case delivery.ReadPosition:
		return "read the committed position"
	case delivery.ReadBounds:
		return "read the bounds of the log"
	case delivery.ReadEpochEnd:
		return fmt.Sprintf("read the end of leader epoch %d", a.Epoch)
	case delivery.ReadTime:
		return fmt.Sprintf("read the time of record %d", a.Offset)
	case delivery.RebuildWindow:
		return fmt.Sprintf("rebuild the window up to %d, the log begins at %d", a.From, a.Start)
	case delivery.Fetch:
		return fmt.Sprintf("fetch from %d", a.Offset)
	case delivery.TakeRange:
		return fmt.Sprintf("take the range [%d, %d)", a.From, a.To)
	case delivery.TakeResent:
		return "look up what was resent"
	case delivery.CommitOffset:
		return fmt.Sprintf("%s: offset %d, epoch %d, %s", delivery.Operation(a), a.Offset, a.Epoch, a.Commit.Metadata(a.Offset))
	case delivery.Settle:
		return "end the inserts under way"
	case delivery.LookUp:
		text := "look up all rows"
		if a.Rows != nil {
			text = fmt.Sprintf("look up the rows %v", a.Rows)
		}
		if a.AnyShard {
			text += " at every shard"
		}
		return text
	case delivery.KeepMissing:
		return "keep the missing rows"
	case delivery.Load:
		return "load the rows"
	case delivery.Insert:
		if a.Rows != nil {
			return fmt.Sprintf("insert the rows %v under %s", a.Rows, a.Token)
		}
		return "insert the block under " + a.Token
	case delivery.ProduceLetters:
		return "produce dead letters"
	case delivery.Wait:
		return fmt.Sprintf("wait %s, then try again to %s: %v", a.Delay, a.Operation, a.Err)
	case delivery.Stop:
		if a.Err == nil {
			return "stop"
		}
		return fmt.Sprintf("stop: %v", a.Err)
	default:
		return fmt.Sprintf("%#v", a)
	}
}

func noteText(note delivery.Note) string {
	switch n := note.(type) {
	case delivery.SetShard:
		return fmt.Sprintf("rows go to shard %d", n.Shard)
	case delivery.Seek:
		return fmt.Sprintf("the next fetch, from %d, rests on leader epoch %d", n.Offset, n.Epoch)
	case delivery.DivertCorrupt:
		return fmt.Sprintf("divert the records of [%d, %d): %v", n.Offset, n.Next, n.Err)
	case delivery.Divert:
		var rows []string
		for _, r := range n.Refused {
			rows = append(rows, fmt.Sprintf("row %d: %v", r.Row, r.Err))
		}
		return "divert " + strings.Join(rows, "; ")
	case delivery.TakenOver:
		text := fmt.Sprintf("taken over at %d", n.From)
		if n.PlannedTo != 0 {
			text += fmt.Sprintf(", planned to %d", n.PlannedTo)
		}
		if n.Unsure != 0 {
			text += fmt.Sprintf(", unsure to %d", n.Unsure)
		}
		return text
	case delivery.Doubted:
		return fmt.Sprintf("doubted from %d on: %s", n.From, n.Why)
	case delivery.PlanDropped:
		return fmt.Sprintf("the plan of [%d, %d) is dropped: its first record was of %d, and now is of %d", n.From, n.To, n.PlannedFirst, n.First)
	case delivery.RangeResumed:
		return "the planned range was read again"
	case delivery.RecordsLost:
		return fmt.Sprintf("records of [%d, %d) are lost", n.From, n.Start)
	case delivery.RowsFound:
		return fmt.Sprintf("%d rows are stored already, %d are missing", n.Found, n.Missing)
	case delivery.TokenWithoutRows:
		return "a token without rows"
	case delivery.ViewsWork:
		return "views work"
	case delivery.ViewFailed:
		return fmt.Sprintf("a view failed after %d rows were stored: %v", n.Found, n.Err)
	case delivery.Bisecting:
		return fmt.Sprintf("bisecting: %v", n.Err)
	case delivery.Stored:
		return fmt.Sprintf("stored [%d, %d): %d rows, of which %d diverted, %d stored by nobody knows whom", n.From, n.To, n.Rows, n.Refused, n.UnsureFound)
	default:
		return fmt.Sprintf("%#v", n)
	}
}

func span(words []string) (from, to int64) {
	a, b, _ := strings.Cut(words[0], "-")
	return number(a), number(b)
}

func number(word string) int64 { return must(strconv.ParseInt(word, 10, 64)) }

func must[T any](v T, err error) T {
	if err != nil {
		panic(err) // a story is wrong
	}
	return v
}
