package spool

// Crash ends the Spool as the end of the process would: nothing more is written
// and the lock is released.
func (s *Spool) Crash() {
	s.syncing <- struct{}{}
	s.reading.Lock()
	s.leave()
	s.mu.Lock()
	s.closed = true
	s.awake()
	s.dir.Close()
	s.cursor.Close()
	for _, g := range s.segments {
		if g.file != nil {
			g.file.Close()
		}
	}
	s.mu.Unlock()
	s.reading.Unlock()
	<-s.syncing
}

// BreakActive makes every write to the active segment fail, and its sync.
func (s *Spool) BreakActive() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.active.file.Close()
}

// AppendBreakingSync appends e and breaks the file before it is synced.
func (s *Spool) AppendBreakingSync(e Entry) error {
	s.syncing <- struct{}{}
	defer func() { <-s.syncing }()
	s.mu.Lock()
	g, err := s.write(header{length: uint32(len(e.Body)), bodyCRC: crc(e.Body)}, e.Body)
	if err != nil {
		s.mu.Unlock()
		return err
	}
	g.file.Close()
	b := &batch{done: make(chan struct{})}
	s.batch = b
	s.mu.Unlock()
	s.sync(b)
	return g.failed
}

// EncodeHeader returns the header of an entry, for the test of the format.
func EncodeHeader(segment uint64, flags, index, length uint32, received int64, bodyCRC uint32) [headerSize]byte {
	return header{flags, index, length, received, bodyCRC}.encode(segment)
}

// EncodeCursor returns a cursor's file, for the test of the format.
func EncodeCursor(clean bool, doneSegment uint64, doneIndex uint32, handedSegment uint64, handedIndex uint32) []byte {
	return cursor{clean, position{doneSegment, doneIndex}, position{handedSegment, handedIndex}}.encode()
}
