package deadletter

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/metaflowys/metaflow-server/pkg/delivery"
	"github.com/metaflowys/metaflow-server/pkg/kafka"
	"github.com/metaflowys/metaflow-server/schema"
)

// State says what became of a letter.
type State string

// The states of letters, as marks name them.
const (
	Open     State = ""
	Replayed State = "replayed"
	Dropped  State = "dropped"
)

// stateIn returns the state that a mark gives, or Open for a letter.
func stateIn(headers []delivery.Header) State {
	for _, h := range headers {
		if h.Key == schema.HeaderHandled {
			return State(h.Value)
		}
	}
	return Open
}

// Mark returns the record that gives letters a state. Its value has one line for each,
// "partition/offset", or "partition/first-last" for several in a row.
func Mark(letters []Position, state State) kafka.Outgoing {
	var value bytes.Buffer
	for i := 0; i < len(letters); {
		first := letters[i]
		last := first.Offset
		for i++; i < len(letters) && letters[i] == (Position{first.Partition, last + 1}); i++ {
			last++
		}
		fmt.Fprintf(&value, "%d/%d", first.Partition, first.Offset)
		if last > first.Offset {
			fmt.Fprintf(&value, "-%d", last)
		}
		value.WriteByte('\n')
	}
	return kafka.Outgoing{Value: value.Bytes(), Headers: []delivery.Header{{Key: schema.HeaderHandled, Value: []byte(state)}}}
}

// maxMarked bounds the letters of one mark, whatever its ranges say.
const maxMarked = 1000

// readMark calls f for the letters of a mark. It ignores lines that it does not understand.
func readMark(value []byte, f func(Position)) {
	left := maxMarked
	for line := range strings.Lines(string(value)) {
		partition, first, last, err := ParsePositions(strings.TrimSuffix(line, "\n"))
		if err != nil {
			continue
		}
		for offset := first; offset <= last && left > 0; offset++ {
			f(Position{partition, offset})
			left--
		}
	}
}

// ParsePositions reads "partition/offset" or "partition/first-last".
func ParsePositions(text string) (partition int, first, last int64, err error) {
	number, offsets, ok := strings.Cut(text, "/")
	from, to, several := strings.Cut(offsets, "-")
	if !several {
		to = from
	}
	p, err1 := strconv.ParseUint(number, 10, 31)
	a, err2 := strconv.ParseUint(from, 10, 63)
	b, err3 := strconv.ParseUint(to, 10, 63)
	if !ok || errors.Join(err1, err2, err3) != nil || b < a {
		return 0, 0, 0, fmt.Errorf("%q is not PARTITION/OFFSET or PARTITION/FIRST-LAST", text)
	}
	return int(p), int64(a), int64(b), nil
}

// Marker marks letters. The zero value marks nothing.
type Marker struct {
	Producer Producer // of the dead-letter topic
	// Until returns a moment until which nobody else replays or drops letters; nil means forever.
	Until func() time.Time

	state   State
	waiting []Position
}

// ErrNotOwned means that another operator may be at work on the letters by now.
var ErrNotOwned = errors.New("another replay or drop may have begun: nothing more is sent")

func (m *Marker) owned() error {
	if m != nil && m.Until != nil && !time.Now().Before(m.Until()) {
		return ErrNotOwned
	}
	return nil
}

// Add marks a letter, at the latest when Flush is called. All letters of a marker have one state.
func (m *Marker) Add(ctx context.Context, at Position, state State) error {
	if m == nil || m.Producer == nil {
		return nil
	}
	m.state = state
	if m.waiting = append(m.waiting, at); len(m.waiting) < maxMarked {
		return nil
	}
	return m.Flush(ctx)
}

// Flush writes the marks that wait.
func (m *Marker) Flush(ctx context.Context) error {
	if m == nil || len(m.waiting) == 0 {
		return nil
	}
	if err := m.Producer.Produce(ctx, []kafka.Outgoing{Mark(m.waiting, m.state)}); err != nil {
		return fmt.Errorf("mark dead letters as %s: %w", m.state, err)
	}
	m.waiting = m.waiting[:0]
	return nil
}
