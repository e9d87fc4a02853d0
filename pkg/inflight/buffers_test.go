package inflight

import "testing"

func TestSizeClassesHoldTheirSizeAndWasteLittle(t *testing.T) {
	last := -1
	for size := 1; size < 200*mib; size += 1 + size/777 {
		class, capacity := sizeClass(size)
		if capacity < size || size > 4096 && capacity > size+size/4 {
			t.Fatalf("%d bytes get a buffer of %d", size, capacity)
		}
		if again, same := sizeClass(capacity); again != class || same != capacity {
			t.Fatalf("a buffer of %d returns to class %d of %d, came from %d", capacity, again, same, class)
		}
		if class < last || class > last+1 {
			t.Fatalf("class %d follows %d at %d bytes", class, last, size)
		}
		last = class
	}
}
