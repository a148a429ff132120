package vm

import (
	"testing"
	"time"
)

// A clone's clock is trusted only if it can't be off by more than is allowed, wherever in
// the time that a message took it was read.
func TestSkew(t *testing.T) {
	const ms = time.Millisecond
	begin := time.Unix(1000, 0)
	for _, c := range []struct {
		shows, took, behind time.Duration // shows: after begin
		sure                bool
	}{
		{5 * ms, 10 * ms, 0, true},
		{0, 10 * ms, 5 * ms, true},
		{-30 * ms, 20 * ms, 40 * ms, false},
		{0, 60 * ms, 30 * ms, false},
		{time.Hour, 2 * ms, ms - time.Hour, false},
	} {
		behind, sure := skew(begin, begin.Add(c.shows).UnixNano(), c.took)
		if behind != c.behind || sure != c.sure {
			t.Errorf("one that showed %v, by messages of %v, is %v behind, sure: %v; want %v, %v", c.shows, c.took, behind, sure, c.behind, c.sure)
		}
	}
}
