package disk

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

// A sum does not depend on where a filesystem keeps zeros.
func TestSumsDoNotCountZeros(t *testing.T) {
	sum := func(write func(f *os.File)) uint32 {
		f, err := os.Create(filepath.Join(t.TempDir(), "f"))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if err := f.Truncate(8 << 20); err != nil {
			t.Fatal(err)
		}
		write(f)
		n, err := Sum(f)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	word := func(f *os.File) {
		if _, err := f.WriteAt([]byte("word"), 5<<20); err != nil {
			t.Fatal(err)
		}
	}
	sparse := sum(word)
	full := sum(func(f *os.File) {
		if _, err := f.WriteAt(bytes.Repeat([]byte{0}, 8<<20), 0); err != nil {
			t.Fatal(err)
		}
		word(f)
	})
	if sparse != full {
		t.Errorf("with holes %08x, without %08x", sparse, full)
	}
	if moved := sum(func(f *os.File) {
		if _, err := f.WriteAt([]byte("word"), 6<<20); err != nil {
			t.Fatal(err)
		}
	}); moved == sparse {
		t.Error("it does not matter where a page lies")
	}
}
