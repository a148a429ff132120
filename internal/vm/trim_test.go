package vm

import "testing"

func TestOverlap(t *testing.T) {
	free := [][2]int64{{0, 10}, {20, 10}, {30, 5}, {100, 1}}
	for _, c := range []struct{ offset, bytes, want int64 }{
		{0, 10, 10}, {0, 5, 5}, {5, 10, 5}, {10, 10, 0}, {10, 11, 1}, {0, 200, 26}, {25, 8, 8}, {34, 66, 1}, {99, 5, 1}, {101, 50, 0}, {20, 0, 0},
	} {
		if got := overlap(free, c.offset, c.bytes); got != c.want {
			t.Errorf("of %d bytes at %d, %d are free, not %d", c.bytes, c.offset, got, c.want)
		}
	}
	if overlap(nil, 0, 10) != 0 {
		t.Error("nothing is free, and some of it lies in the range")
	}
}
