package agent

import (
	"slices"
	"sync"
)

// exceptions holds the current problems by subject. Operators see them in
// 'metaflow-ctl agent list'.
type exceptions struct {
	changed chan struct{} // capacity 1: the exceptions changed

	mu   sync.Mutex
	list map[string]string
}

func newExceptions() *exceptions {
	return &exceptions{changed: make(chan struct{}, 1), list: map[string]string{}}
}

// set replaces the exception of a subject; an empty text removes it.
func (e *exceptions) set(subject, text string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.list[subject] == text {
		return
	}
	if text == "" {
		delete(e.list, subject)
	} else {
		e.list[subject] = text
	}
	select {
	case e.changed <- struct{}{}:
	default:
	}
}

// texts returns the exceptions, sorted by subject.
func (e *exceptions) texts() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	subjects := make([]string, 0, len(e.list))
	for s := range e.list {
		subjects = append(subjects, s)
	}
	slices.Sort(subjects)
	texts := make([]string, len(subjects))
	for i, s := range subjects {
		texts[i] = s + ": " + e.list[s]
	}
	return texts
}
