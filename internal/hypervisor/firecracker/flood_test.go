package firecracker

import (
	"bufio"
	"os"
	"path/filepath"
	"testing"
)

// A guest that prints a GiB takes no more of the disk than one that prints a few MiB, and its
// machine answers meanwhile.
func TestConsoleFloodIsBounded(t *testing.T) {
	if testing.Short() {
		t.Skip("SKIP: short")
	}
	spec := goodSpec(t)
	m, err := launch(t, fake(t, script{Flood: 1 << 30}), spec)
	if err != nil {
		t.Fatal(err)
	}
	echo(t, m)
	log, err := m.Console().Log(t.Context(), true)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	for lines := bufio.NewScanner(log); lines.Text() != "guest: dry"; {
		if !lines.Scan() {
			t.Fatalf("it never said that it was done: %v", lines.Err())
		}
	}
	logs, err := filepath.Glob(filepath.Join(spec.Dir, "*.log*"))
	if err != nil || len(logs) == 0 {
		t.Fatalf("it has the logs %q, %v", logs, err)
	}
	const most = 17 << 20 // bytes: of the console twice 8 MiB, and what Firecracker says
	sum := int64(0)
	for _, path := range logs {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		sum += info.Size()
	}
	if sum == 0 || sum > most {
		t.Errorf("its logs %q have %d bytes", logs, sum)
	}
}
