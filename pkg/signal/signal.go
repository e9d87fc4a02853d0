package signal

// Signal describes one kind of data. It does not change once it is in use.
type Signal struct {
	// Name is the value of the label "signal" in metrics, Item and Items what
	// messages and metrics call one item and several: "traces", "span", "spans".
	Name, Item, Items string
	// Prefix begins the names of metrics of whole requests. It is empty for the
	// first signal there was, and Items with an underscore for all others.
	Prefix string
	// Request is the name of its protobuf message, for errors, and Method the
	// full name of the gRPC method that takes one: "/package.Service/Method".
	Request, Method string
	// Topic is the Kafka topic that holds its records. A record is itself a
	// request.
	Topic string
	// Message is the form of a request, and Path the fields that lead from it
	// to its items: the groups at each level, and the items last. A field has a
	// number below 16.
	Message *Message
	Path    []Tag
	// Envelope means that every record repeats the request's own fields, which
	// its groups stand beside. Otherwise records go without them.
	Envelope bool

	// Sender returns the id of the agent that a valid request names. It is nil
	// where requests name none; otherwise the id must be that of the caller.
	Sender func(req []byte) []byte

	// Judge reads an item and decides whether it can be stored, and where. It reports
	// false if the item is not a well-formed message, or a text in it is not
	// UTF-8. It keeps nothing of item.
	Judge func(item []byte, w Window) (Verdict, bool)
	// Rules are what items must comply with, at most 14.
	Rules []Rule
	// Describe tells a sender which item was rejected and, where that does not
	// say so already, what it has where another value is wanted. The texts are
	// short, whatever the item holds.
	Describe func(item []byte, reason Reason) (which, has string)
	// Around names what a record repeats beside an item: "resource and scope".
	Around string
	// Repeats and Spare bound what records repeat: together, the records of a
	// request have at most Repeats times its bytes and Spare bytes more. Without
	// a bound, a group made for it would be copied for each of its items.
	Repeats, Spare int
}

// Check returns ErrMalformed unless req is a valid request. An empty one is
// valid.
func (s *Signal) Check(req []byte) error {
	if !s.Message.Valid(req) {
		return ErrMalformed
	}
	return nil
}

// Repair returns req with its texts repaired, see [Message.Repair].
func (s *Signal) Repair(dst, req []byte) (out []byte, texts int, err error) {
	return s.Message.Repair(dst, req)
}

// Count returns the number of items in a valid request.
func (s *Signal) Count(req []byte) int { return count(req, s.Path) }

func count(b []byte, path []Tag) (n int) {
	Each(b, path[0], func(value []byte) {
		if len(path) == 1 {
			n++
		} else {
			n += count(value, path[1:])
		}
	})
	return n
}

// Select returns a request with those items of req for which keep is true, and
// those of its groups that have such items; index counts all items of req from
// 0. It repairs texts as [Message.Repair] does and keeps all other bytes as
// they are. It is for the few items that are diverted, not for speed.
func (s *Signal) Select(req []byte, keep func(index int) bool) ([]byte, error) {
	req, _, err := s.Message.Repair(nil, req)
	if err != nil {
		return nil, err
	}
	index := 0
	var level func(b []byte, path []Tag) ([]byte, bool)
	level = func(b []byte, path []Tag) ([]byte, bool) {
		return filter(b, path[0], func(value []byte) ([]byte, bool) {
			if len(path) > 1 {
				return level(value, path[1:])
			}
			wanted := keep(index)
			index++
			return value, wanted
		})
	}
	out, _ := level(req, s.Path)
	return out, nil
}

// Key identifies an item: two items with equal keys are the same one. It is
// comparable, and the same type for all signals, so that nothing is boxed.
type Key struct {
	// Time is the time by which the table is sorted, in nanoseconds since the
	// Unix epoch.
	Time int64
	// ID is unique together with Time and Source. Its first bytes are those by
	// which the table is sorted next.
	ID [32]byte
	// Source says whose ID it is, where that needs to be said.
	Source string
}

// Refused is an item of a request that cannot be stored.
type Refused struct {
	Index  int    // counts all items of the request from 0
	Reason string // as metrics have it
}
