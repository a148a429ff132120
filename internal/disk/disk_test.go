package disk

import (
	"math"
	"testing"

	"banger/internal/errs"
)

func TestVirtualBytes(t *testing.T) {
	const mib = 1 << 20
	for _, c := range []struct {
		name       string
		base, want int64
		spec       int64 // 0: the base's
	}{
		{"the base's own", mib, mib, 0},
		{"the same", mib, mib, mib},
		{"one byte more is one sector more", mib, mib + 512, mib + 1},
		{"larger", mib, 16 << 30, 16 << 30},
		{"the most", mib, MaxBytes, MaxBytes},
		{"smaller", mib, -1, mib - 1},
		{"too large", mib, -1, MaxBytes + 1},
		{"absurd", mib, -1, math.MaxInt64},
		{"negative", mib, -1, -1},
		{"an empty base", 0, -1, mib},
		{"a base of half a sector", 256, -1, mib},
		{"a base too large", MaxBytes + 512, -1, 0},
	} {
		got, err := VirtualBytes(Base{Path: "/b", Bytes: c.base}, Spec{Bytes: c.spec})
		if c.want == -1 {
			if errs.KindOf(err) != errs.Invalid {
				t.Errorf("%s: %d, %v", c.name, got, err)
			}
		} else if err != nil || got != c.want {
			t.Errorf("%s: %d, %v, want %d", c.name, got, err, c.want)
		}
	}
}
