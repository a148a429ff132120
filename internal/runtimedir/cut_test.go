package runtimedir

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"banger/internal/errs"
)

// TestDiesWhileFetching is no test: it is the process that TestKilledWhileFetching kills.
func TestDiesWhileFetching(t *testing.T) {
	dir, address, stage := os.Getenv("BANGER_TEST_DIR"), os.Getenv("BANGER_TEST_URL"), os.Getenv("BANGER_TEST_STAGE")
	if dir == "" {
		t.Skip("SKIP: it is run by TestKilledWhileFetching")
	}
	die := func() { unix.Kill(os.Getpid(), unix.SIGKILL); select {} }
	held := func(next Record, swap func([]string) error) error {
		if stage == "before the swap" {
			die()
		}
		err := swap(nil)
		if stage == "after the swap" {
			die()
		}
		return err
	}
	sum, err := os.ReadFile(strings.TrimPrefix(address, "file://") + ".sha256")
	if err != nil {
		t.Fatal(err)
	}
	fetched := 0
	err = NewFetcher().Fetch(t.Context(), dir, Wanted{Archive: Archive{URL: address, SHA256: string(sum)}}, held, func(name string, done, total int64) {
		if name == "fetching" {
			fetched++
		}
		if stage == name || stage == fmt.Sprintf("%s %d", name, fetched) || stage == "fetched" && done == total {
			die()
		}
	})
	t.Fatalf("it was to die at %q: %v", stage, err)
}

func TestKilledWhileFetching(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, stage := range []string{"fetching", "fetching 3", "fetching 5", "fetched", "installing", "before the swap", "after the swap"} {
		t.Run(stage, func(t *testing.T) {
			dir, archive := installed(t)
			path := filepath.Join(t.TempDir(), "b.tar.zst")
			sum := sha256.Sum256(archive)
			for name, b := range map[string][]byte{path: archive, path + ".sha256": []byte(hex.EncodeToString(sum[:]))} {
				if err := os.WriteFile(name, b, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			cmd := exec.Command(self, "-test.run=^TestDiesWhileFetching$")
			cmd.Env = append(os.Environ(), "BANGER_TEST_DIR="+dir, "BANGER_TEST_URL=file://"+path, "BANGER_TEST_STAGE="+stage)
			if out, _ := cmd.CombinedOutput(); cmd.ProcessState.ExitCode() != -1 {
				t.Fatalf("it ended by itself: %s", out)
			}
			want := sample(1)
			if stage == "after the swap" {
				want = sample(10)
			}
			intact(t, dir, want)
			// The next fetch goes on, and leaves nothing of this one.
			if err := NewFetcher().Fetch(t.Context(), dir, Wanted{Archive: Archive{URL: "file://" + path}}, nobody, quiet); err != nil {
				t.Fatal(err)
			}
			intact(t, dir, sample(10))
			if left := beside(t, dir); !slices.Equal(left, []string{previousSuffix}) {
				t.Errorf("beside it lies %v", left)
			}
		})
	}
}

// On a filesystem of every size from too small up, a fetch leaves either bundle whole.
func TestFetchOnAFullDisk(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIP: only root can mount")
	}
	old, archive := installed(t)
	path := filepath.Join(t.TempDir(), "b.tar.zst")
	sum := sha256.Sum256(archive)
	if err := os.WriteFile(path, archive, 0o644); err != nil {
		t.Fatal(err)
	}
	want := Wanted{Archive: Archive{URL: "file://" + path, SHA256: hex.EncodeToString(sum[:])}}
	full, fitted := 0, 0
	for size := 1200; size <= 4400; size += 400 { // KiB
		mount := t.TempDir()
		if err := unix.Mount("tmpfs", mount, "tmpfs", 0, fmt.Sprintf("size=%dk", size)); err != nil {
			t.Skipf("SKIP: can't mount a tmpfs: %v", err)
		}
		t.Cleanup(func() { unix.Unmount(mount, 0) })
		dir := filepath.Join(mount, "banger")
		if out, err := exec.Command("cp", "-a", "--sparse=always", old, dir).CombinedOutput(); err != nil {
			t.Fatalf("cp: %v: %s", err, out)
		}
		err := NewFetcher().Fetch(t.Context(), dir, want, nobody, quiet)
		switch {
		case err == nil:
			fitted++
			intact(t, dir, sample(10))
		case errs.KindOf(err) == errs.Unavailable && strings.Contains(err.Error(), "no room"):
			full++
			intact(t, dir, sample(1))
			if left := beside(t, dir); len(left) != 0 {
				t.Errorf("%d KiB: left %v", size, left)
			}
		default:
			t.Errorf("%d KiB: %v", size, err)
		}
	}
	if full < 2 || fitted < 1 {
		t.Errorf("%d were too small, %d large enough", full, fitted)
	}
}
