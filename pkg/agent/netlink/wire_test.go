package netlink

import (
	"bytes"
	"encoding/binary"
	"errors"
	"slices"
	"testing"
)

func messageOf(kind uint16, sequence uint32, payload string) []byte {
	b := append(make([]byte, HeaderSize), payload...)
	putDump(b, kind, sequence)
	return append(b, make([]byte, -len(b)&3)...)
}

func TestVisitDump(t *testing.T) {
	refused := string(binary.NativeEndian.AppendUint32(nil, ^uint32(21))) // -22
	tests := map[string]struct {
		in         []byte
		want       []string
		done       bool
		result     int32
		wantFailed bool
	}{
		"one part":                {in: slices.Concat(messageOf(20, 7, "one"), messageOf(20, 7, "two")), want: []string{"one", "two"}},
		"the end":                 {in: slices.Concat(messageOf(20, 7, "one"), messageOf(kindDone, 7, "\x00\x00\x00\x00"), messageOf(20, 7, "behind it")), want: []string{"one"}, done: true},
		"an end without a result": {in: messageOf(kindDone, 7, ""), done: true},
		"refused":                 {in: messageOf(kindError, 7, refused), done: true, result: 22},
		"an abandoned dump":       {in: slices.Concat(messageOf(kindDone, 6, ""), messageOf(20, 7, "one")), want: []string{"one"}},
		"cut off":                 {in: messageOf(20, 7, "one")[:HeaderSize], wantFailed: true},
		"nothing":                 {},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			var got []string
			done, result, err := visitDump(tc.in, 7, func(m Message) error {
				got = append(got, string(m.Payload))
				return nil
			})
			if done != tc.done || result != tc.result || errors.Is(err, ErrMalformed) != tc.wantFailed {
				t.Errorf("done %t, result %d, %v", done, result, err)
			}
			if !slices.Equal(got, tc.want) {
				t.Errorf("visited %q, want %q", got, tc.want)
			}
		})
	}
}

func TestVisitorsErrorEndsTheVisit(t *testing.T) {
	stop := errors.New("stop")
	in := slices.Concat(messageOf(20, 7, "one"), messageOf(20, 7, "two"))
	for name, visit := range map[string]func(func(Message) error) error{
		"dump":    func(f func(Message) error) error { _, _, err := visitDump(in, 7, f); return err },
		"reports": func(f func(Message) error) error { return visitAll(in, f) },
	} {
		visited := 0
		if err := visit(func(Message) error { visited++; return stop }); !errors.Is(err, stop) || visited != 1 {
			t.Errorf("%s: %d visited, %v", name, visited, err)
		}
	}
}

// FuzzWire holds the framing to its contract: any bytes yield parts of themselves
// or ErrMalformed, never a panic, and every step makes progress.
func FuzzWire(f *testing.F) {
	f.Add([]byte(nil))
	f.Add(slices.Concat(messageOf(20, 7, "\x05\x00\x01\x80a\x00\x00\x00\x04\x00\x02\x00"), messageOf(kindDone, 7, "")))
	f.Fuzz(func(t *testing.T, in []byte) {
		err := visitAll(in, func(m Message) error {
			if !bytes.Contains(in, m.Payload) {
				t.Fatalf("payload %q", m.Payload)
			}
			for rest := m.Payload; len(rest) > 0; {
				before := len(rest)
				_, value, more, err := NextAttribute(rest)
				if err != nil {
					return err
				}
				if rest = more; len(rest) >= before || len(value) >= before {
					t.Fatalf("%d bytes left of %d after a value of %d", len(rest), before, len(value))
				}
			}
			return nil
		})
		if err != nil && !errors.Is(err, ErrMalformed) {
			t.Fatalf("error %v, want ErrMalformed", err)
		}
	})
}
