package tree

import (
	"bytes"
	"crypto/rand"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
)

// Large files take another way than small ones; their ends lie on and beside the edges of
// blocks and buffers.
func TestLargeFiles(t *testing.T) {
	for _, size := range []int{streamed - 1, streamed, streamed + 1, streamed + directAlign, 2*streamed + 12345} {
		for _, direct := range []bool{false, true} {
			dir := t.TempDir()
			want := make([]byte, size)
			rand.Read(want)
			if err := os.WriteFile(filepath.Join(dir, "src"), want, 0o640); err != nil {
				t.Fatal(err)
			}
			var archive bytes.Buffer
			if err := Pack(&archive, filepath.Join(dir, "src"), direct, nil); err != nil {
				t.Fatal(err)
			}
			told := int64(0)
			if err := Unpack(&archive, filepath.Join(dir, "dst"), Options{Direct: direct, Progress: func(n int64) { told += n }}); err != nil {
				t.Fatal(err)
			}
			if got, err := os.ReadFile(filepath.Join(dir, "dst")); err != nil || !bytes.Equal(got, want) || told != int64(size) {
				t.Errorf("%d bytes, direct %v: came as %d bytes, %d told of, %v", size, direct, len(got), told, err)
			}
		}
	}
}

// A large file that is cut off leaves nothing under its name, and no goroutine waits on.
func TestLargeFileCutOff(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "src"), make([]byte, 3*streamed), 0o600); err != nil {
		t.Fatal(err)
	}
	var archive bytes.Buffer
	if err := Pack(&archive, filepath.Join(dir, "src"), true, nil); err != nil {
		t.Fatal(err)
	}
	err := Unpack(io.LimitReader(&archive, 2*streamed), filepath.Join(dir, "dst"), Options{Direct: true})
	if !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("got %v", err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	full := errors.New("the client has gone")
	if err := Pack(failingWriter{full}, filepath.Join(dir, "src"), true, nil); !errors.Is(err, full) {
		t.Errorf("got %v", err)
	}
}

type failingWriter struct{ err error }

func (w failingWriter) Write([]byte) (int, error) { return 0, w.err }
