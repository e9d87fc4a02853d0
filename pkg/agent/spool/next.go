package spool

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
)

// Next hands out the oldest entry that is not handed out, and blocks until
// there is one. The caller must end each entry with Done or Return; any number
// may be handed out at a time. Next returns ctx's error or ErrClosed.
func (s *Spool) Next(ctx context.Context) (Entry, error) {
	for {
		if err := ctx.Err(); err != nil {
			return Entry{}, err
		}
		s.mu.Lock()
		wake := s.wake
		if s.closed {
			s.mu.Unlock()
			return Entry{}, ErrClosed
		}
		if len(s.returned) > 0 {
			e := s.returned[0]
			s.returned = slices.Delete(s.returned, 0, 1)
			s.out[e.at] = e.receipt()
			s.mu.Unlock()
			return e, nil
		}
		s.mu.Unlock()

		if e, ok := s.readNext(); ok {
			return e, nil
		}
		select {
		case <-wake:
		case <-ctx.Done():
		}
	}
}

// receipt returns e without its body.
func (e Entry) receipt() Entry {
	e.Body = nil
	return e
}

// readNext reads the next entry from disk. It returns false if there is none.
func (s *Spool) readNext() (Entry, bool) {
	s.reading.Lock()
	defer s.reading.Unlock()
	for {
		g, limit, sealed := s.unread()
		if g == nil {
			s.leave() // if the file was removed, closing it frees its room
			return Entry{}, false
		}
		if err := s.enter(g); err != nil {
			s.log.Error("cannot read spool segment", slog.String("file", g.path), slog.Any("error", err))
			s.readToEnd(g)
			continue
		}
		h, body, err := s.scanner.next(limit)
		if err == nil {
			if e, ok := s.handOut(g, h, body); ok {
				return e, true
			}
			continue
		}
		if !sealed {
			return Entry{}, false
		}
		s.readToEnd(g)
	}
}

// unread returns the first segment not yet read to its end, the offset up to
// which it can be read now, and whether it will not grow beyond that.
func (s *Spool) unread() (g *segment, limit int64, sealed bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, 0, false
	}
	for _, g := range s.segments {
		if !g.read {
			// A sealed segment that is not synced will grow.
			return g, g.durableSize, g.sealed && g.durable == g.written
		}
	}
	return nil, 0, false
}

// enter opens g as the segment to read. The caller holds reading.
func (s *Spool) enter(g *segment) error {
	if s.source == g {
		return nil
	}
	s.leave()
	file, err := os.Open(g.path)
	if err != nil {
		return err
	}
	s.source, s.input, s.scanner = g, file, &scanner{file: file, segment: g.number}
	return nil
}

// leave closes the segment being read. The caller holds reading.
func (s *Spool) leave() {
	if s.source == nil {
		return
	}
	if damaged := s.scanner.damaged; damaged > 0 {
		s.metrics.damaged.Add(float64(damaged))
		s.log.Error("spool segment is damaged", slog.String("file", s.source.path), slog.Int64("bytes", damaged))
	}
	s.input.Close()
	s.source, s.input, s.scanner = nil, nil, nil
}

// handOut registers an entry as handed out. It returns false for an entry that
// is done already or not durable.
func (s *Spool) handOut(g *segment, h header, body []byte) (Entry, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if h.index < g.handed || h.index >= g.durable {
		return Entry{}, false
	}
	s.count(g, g.pass(h.index))
	g.handed++
	e := Entry{
		Body:     body,
		Resend:   h.flags&flagResend != 0 || h.index < g.before,
		Received: h.receivedAt(),
		at:       position{g.number, h.index},
	}
	s.out[e.at] = e.receipt()
	return e, true
}

// readToEnd records that g has no more readable entries.
func (s *Spool) readToEnd(g *segment) {
	if s.source == g {
		s.leave()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.count(g, g.pass(g.durable))
	g.read = true
	if err := s.sweep(); err != nil {
		s.log.Error("cannot remove spool segment", slog.String("file", g.path), slog.Any("error", err))
	}
}

// count subtracts lost entries. The caller holds mu.
func (s *Spool) count(g *segment, lost uint32) {
	if lost == 0 {
		return
	}
	s.entries -= int(lost)
	s.metrics.lost.Add(float64(lost))
	s.log.Error("spool entries lost to damage", slog.String("file", g.path), slog.Uint64("entries", uint64(lost)))
}

// Done releases e, which Next handed out. It returns an error if e was not
// handed out or its room could not be freed; either way e is not handed out
// again.
func (s *Spool) Done(e Entry) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return ErrClosed
	}
	if _, ok := s.out[e.at]; !ok {
		return errors.New("release spool entry: not handed out")
	}
	delete(s.out, e.at)
	s.entries--
	i, ok := s.find(e.at.segment)
	if !ok {
		return errors.New("release spool entry: its segment is gone")
	}
	g := s.segments[i]
	g.finish(e.at.index)
	if g.low == g.written && g.durable == g.written {
		// Every entry is done: free the room at once.
		s.seal(g)
		g.read = true
	}
	return errors.Join(s.sweep(), s.remember(false))
}

// Return gives e back, to be handed out again before younger entries. e keeps
// its Resend; its body must not be changed afterwards.
func (s *Spool) Return(e Entry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.out[e.at]; !ok || s.closed {
		return
	}
	delete(s.out, e.at)
	i, _ := slices.BinarySearchFunc(s.returned, e.at, func(r Entry, at position) int { return r.at.compare(at) })
	s.returned = slices.Insert(s.returned, i, e)
	s.awake()
}

func (p position) compare(o position) int {
	return cmp.Or(cmp.Compare(p.segment, o.segment), cmp.Compare(p.index, o.index))
}

func (s *Spool) find(number uint64) (int, bool) {
	return slices.BinarySearchFunc(s.segments, number, func(g *segment, n uint64) int { return cmp.Compare(g.number, n) })
}

// sweep removes the files of finished segments. The caller holds mu.
func (s *Spool) sweep() error {
	var errs []error
	s.segments = slices.DeleteFunc(s.segments, func(g *segment) bool {
		if !g.finished() {
			return false
		}
		s.release(g)
		if err := os.Remove(g.path); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, fmt.Errorf("remove segment: %w", err)) // the next sweep retries
			return false
		}
		s.bytes -= g.size
		return true
	})
	return errors.Join(errs...)
}
