// Package pattern owns the bytes that the test guest sends and that its tests expect.
package pattern

// Pattern is an endless row of bytes in which none goes unnoticed that is lost, doubled or changed.
type Pattern uint32

func (x *Pattern) Read(b []byte) (int, error) {
	for i := range b {
		*x = *x*1664525 + 1013904223 // a generator of Knuth's, whose high bits are good
		b[i] = byte(*x >> 24)
	}
	return len(b), nil
}
