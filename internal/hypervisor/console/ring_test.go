package console

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

func openRing(t *testing.T, dir string, limit int64) *Ring {
	t.Helper()
	r, err := OpenRing(filepath.Join(dir, consoleLog), limit)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

func readAll(t *testing.T, r io.ReadCloser) string {
	t.Helper()
	defer r.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestRingKeepsTheEnd writes anything in any pieces and finds the end of it kept, in
// bounded space, in order.
func TestRingKeepsTheEnd(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		dir, err := os.MkdirTemp(t.TempDir(), "")
		if err != nil {
			t.Fatal(err)
		}
		const limit = 64
		var all []byte
		for range rapid.IntRange(1, 3).Draw(rt, "openings") {
			r := openRing(t, dir, limit)
			for range rapid.IntRange(0, 5).Draw(rt, "writes") {
				b := rapid.SliceOfN(rapid.Byte(), 0, 3*limit).Draw(rt, "piece")
				all = append(all, b...)
				r.Write(b)
			}
			reader, err := r.reader(nil, false, false)
			if err != nil {
				t.Fatal(err)
			}
			if got := readAll(t, reader); !bytes.HasSuffix(all, []byte(got)) || len(got) < min(len(all), limit) {
				rt.Fatalf("kept %d of %d bytes, or others", len(got), len(all))
			}
			r.Close()
		}
		kept, err := ReadLog(dir)
		if err != nil {
			t.Fatal(err)
		}
		if got := readAll(t, kept); !bytes.HasSuffix(all, []byte(got)) || len(got) > 2*limit || len(got) < min(len(all), limit) {
			rt.Fatalf("a stopped machine's log has %d of %d bytes, or others", len(got), len(all))
		}
	})
}

// TestFollowersSeeEverything has followers read while one writes across many rotations.
// They keep up, because the writer waits for them.
func TestFollowersSeeEverything(t *testing.T) {
	r := openRing(t, t.TempDir(), 100)
	var want strings.Builder
	const followers = 3
	progress := make(chan int, followers)
	var wg sync.WaitGroup
	got := make([]string, followers)
	for i := range followers {
		reader, err := r.reader(nil, true, i == 0)
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			defer reader.Close()
			b := make([]byte, 7)
			for {
				n, err := reader.Read(b)
				got[i] += string(b[:n])
				if err != nil {
					if !errors.Is(err, io.EOF) {
						t.Errorf("follower %d: %v", i, err)
					}
					return
				}
				if strings.HasSuffix(got[i], ".") {
					progress <- i
				}
			}
		})
	}
	for i := range 60 {
		text := fmt.Sprintf("the line with the number %d.", i)
		want.WriteString(text)
		io.WriteString(r, text)
		for range followers {
			<-progress
		}
	}
	r.Close()
	wg.Wait()
	for i, g := range got {
		if g != want.String() {
			t.Errorf("follower %d read %q", i, g)
		}
	}
}

func TestAReaderLeftBehindIsTold(t *testing.T) {
	r := openRing(t, t.TempDir(), 10)
	io.WriteString(r, "0123456789")
	reader, err := r.reader(nil, false, false)
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(r, strings.Repeat("abcdefghij", 5)+"end")
	if got, want := readAll(t, reader), "0123456789"+lostNote+"abcdefghijend"; got != want {
		t.Errorf("read %q, want %q", got, want)
	}
}

func TestCloseEndsAWaitingReader(t *testing.T) {
	r := openRing(t, t.TempDir(), 10)
	stop := make(chan struct{})
	closed, err := r.reader(nil, true, false)
	if err != nil {
		t.Fatal(err)
	}
	stopped, err := r.reader(stop, true, false)
	if err != nil {
		t.Fatal(err)
	}
	ends := make(chan error, 2)
	for _, reader := range []io.Reader{closed, stopped} {
		go func() { _, err := reader.Read(make([]byte, 1)); ends <- err }()
	}
	closed.Close()
	if err := <-ends; !errors.Is(err, os.ErrClosed) {
		t.Errorf("a closed reader: %v", err)
	}
	close(stop)
	if err := <-ends; !errors.Is(err, io.EOF) {
		t.Errorf("a reader whose context is done: %v", err)
	}
	stopped.Close()
}

// TestALogThatFailsDoesNotStopTheConsole writes where nothing can be written any more.
func TestALogThatFailsDoesNotStopTheConsole(t *testing.T) {
	dir := t.TempDir()
	r := openRing(t, dir, 10)
	io.WriteString(r, "0123456789")
	// The log can't be rotated any more: its name is a directory's.
	if err := os.Remove(filepath.Join(dir, consoleLog)); err != nil {
		t.Fatal(err)
	}
	if n, err := io.WriteString(r, "more"); n != 4 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
}

func TestReadLogOfAMachineThatNeverRan(t *testing.T) {
	r, err := ReadLog(filepath.Join(t.TempDir(), "gone"))
	if err != nil {
		t.Fatal(err)
	}
	if got := readAll(t, r); got != "" {
		t.Errorf("read %q", got)
	}
}

// A host that can't begin another file for a while, for it is full, loses what comes in that time
// and no more.
func TestAFileThatCantBeBegun(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, consoleLog)
	r, err := OpenRing(path, 4)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	write := func(text string) {
		t.Helper()
		if n, err := io.WriteString(r, text); n != len(text) || err != nil {
			t.Errorf("%d, %v", n, err)
		}
	}
	write("full")
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	none := limit
	none.Cur = 0
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &none); err != nil {
		t.Fatal(err)
	}
	write("lost")
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if kept, err := os.ReadFile(path); string(kept) != "full" {
		t.Errorf("meanwhile it is %q, %v", kept, err)
	}
	write("more")
	log, err := ReadLog(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	if all, err := io.ReadAll(log); string(all) != "fullmore" {
		t.Errorf("it is %q, %v", all, err)
	}
}
