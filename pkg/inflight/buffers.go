package inflight

import (
	"math/bits"
	"sync"
)

// Buffer sizes are an eighth of an octave apart, so that less than a ninth of a buffer is
// unused: a Budget's count is close to the memory in use.
const (
	smallestShift  = 12 // 128 MiB; larger ones are not pooled
	largestShift   = 27 // 128 MiB; larger ones are not kept
	stepsPerOctave = 8
	sizeClasses    = (largestShift-smallestShift)*stepsPerOctave + 1
)

// Buffers pools request bodies. The zero value is ready to use.
type Buffers struct {
	classes [sizeClasses]sync.Pool
}

// Get returns a buffer of length size with arbitrary content.
func (p *Buffers) Get(size int) *[]byte {
	class, capacity := sizeClass(size)
	if class >= sizeClasses {
		b := make([]byte, size)
		return &b
	}
	b, ok := p.classes[class].Get().(*[]byte)
	if !ok {
		fresh := make([]byte, capacity)
		b = &fresh
	}
	*b = (*b)[:size]
	return b
}

// Put returns a buffer that is no longer used. Its length may have changed. Put drops a
// buffer that did not come from Get.
func (p *Buffers) Put(b *[]byte) {
	if class, capacity := sizeClass(cap(*b)); class < sizeClasses && capacity == cap(*b) {
		p.classes[class].Put(b)
	}
}

// sizeClass returns the class whose buffers hold size bytes, and their capacity.
func sizeClass(size int) (class, capacity int) {
	if size <= 1<<smallestShift {
		return 0, 1 << smallestShift
	}
	octave := bits.Len(uint(size-1)) - 1 // 1<<octave < size <= 2<<octave
	step := 1 << octave / stepsPerOctave
	steps := (size - 1<<octave + step - 1) / step
	return (octave-smallestShift)*stepsPerOctave + steps, 1<<octave + steps*step
}
