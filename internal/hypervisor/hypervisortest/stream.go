package hypervisortest

import (
	"fmt"
	"hash/crc32"
	"io"
	"testing"
	"time"

	"banger/internal/hypervisor/hypervisortest/pattern"
)

// Stream has a machine send a GiB and take a GiB over its channel, which in the lab takes minutes.
// Nothing is lost, and the machine answers afterwards.
func (s Suite) Stream(t *testing.T) {
	const size, patience = 1 << 30, 30 * time.Minute
	m := s.launch(t, s.Spec(t.TempDir()))
	l := dial(t, m)
	defer l.Close()
	if err := l.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	l.say(t, fmt.Sprint("pour ", size))
	got, want := crc32.NewIEEE(), crc32.NewIEEE()
	if n, err := io.CopyN(got, l.in, size); err != nil {
		t.Fatalf("after %d bytes from the guest: %v", n, err)
	}
	if _, err := io.CopyN(want, new(pattern.Pattern), size); err != nil {
		t.Fatal(err)
	}
	if got.Sum32() != want.Sum32() {
		t.Errorf("the guest's bytes add up to %x, not %x", got.Sum32(), want.Sum32())
	}
	t.Logf("from the guest in %.0f s", time.Since(begin).Seconds())

	begin = time.Now()
	l.say(t, fmt.Sprint("drink ", size))
	sent := crc32.NewIEEE()
	if n, err := io.CopyN(io.MultiWriter(l.Conn, sent), new(pattern.Pattern), size); err != nil {
		t.Fatalf("after %d bytes to the guest: %v", n, err)
	}
	if heard := l.hear(t); heard != fmt.Sprintf("%x", sent.Sum32()) {
		t.Errorf("what the guest took adds up to %s, not %x", heard, sent.Sum32())
	}
	t.Logf("to the guest in %.0f s", time.Since(begin).Seconds())
	if got := l.ask(t, "echo still here"); got != "still here" {
		t.Errorf("then it says %q", got)
	}
}
