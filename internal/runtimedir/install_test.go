package runtimedir

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"banger/internal/errs"
)

func TestInstall(t *testing.T) {
	base := t.TempDir()
	dir, from := filepath.Join(base, "banger"), filepath.Join(t.TempDir(), "from")
	if err := os.Mkdir(dir, 0o755); err != nil { // as a package may have made it
		t.Fatal(err)
	}
	writeBundle(t, from, made, sample(1))
	if err := Install(t.Context(), dir, from, Terms{}, nobody, quiet); err != nil {
		t.Fatal(err)
	}
	intact(t, dir, sample(1))
	if left := beside(t, dir); len(left) != 0 {
		t.Errorf("left beside it: %v", left)
	}
	if err := Rollback(dir, nobody); errs.KindOf(err) != errs.NotFound {
		t.Errorf("a rollback to nothing: %v", err)
	}
	newer, older := filepath.Join(t.TempDir(), "newer"), filepath.Join(t.TempDir(), "older")
	writeBundle(t, newer, made.Add(time.Hour), sample(10))
	writeBundle(t, older, made.Add(-time.Hour), sample(20))
	if err := Install(t.Context(), dir, newer, Terms{}, nobody, quiet); err != nil {
		t.Fatal(err)
	}
	intact(t, dir, sample(10))
	intact(t, dir+previousSuffix, sample(1))
	err := Install(t.Context(), dir, older, Terms{}, nobody, quiet)
	if errs.KindOf(err) != errs.Conflict || !strings.Contains(errs.HintOf(err), "--allow-downgrade") {
		t.Errorf("an older bundle: %v", err)
	}
	intact(t, dir, sample(10))
	for i, want := range []byte{1, 10, 1} {
		if err := Rollback(dir, nobody); err != nil {
			t.Fatal(err)
		}
		if intact(t, dir, sample(want)); t.Failed() {
			t.Fatalf("rollback %d", i)
		}
	}
	if err := Install(t.Context(), dir, older, Terms{AllowDowngrade: true}, nobody, quiet); err != nil {
		t.Fatal(err)
	}
	intact(t, dir, sample(20))

	// What an earlier version wrote down had no modes.
	early := filepath.Join(t.TempDir(), "early")
	r := writeBundle(t, early, made.Add(2*time.Hour), sample(30))
	for i := range r.Artefacts {
		r.Artefacts[i].Files[0].Mode = ""
	}
	if err := errors.Join(r.write(early), os.Chmod(filepath.Join(early, "images/odd/odd-1e"), 0o644)); err != nil {
		t.Fatal(err)
	}
	if err := Install(t.Context(), dir, early, Terms{}, nobody, quiet); err != nil {
		t.Fatal(err)
	}
	intact(t, dir, sample(30))

	// What is no bundle, or no longer the one it was, is not installed.
	if err := flipBit(filepath.Join(newer, "images/odd/odd-0a"), 5); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{t.TempDir(), newer} {
		if err := Install(t.Context(), dir, bad, Terms{}, nobody, quiet); err == nil {
			t.Errorf("%s was installed", bad)
		}
	}
	intact(t, dir, sample(30))
}

// Files that disks of VMs are based on stay where they are, for as long as they are needed.
func TestInstallKeepsWhatDisksNeed(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "banger")
	writeBundle(t, dir, made, sample(1))
	next := filepath.Join(t.TempDir(), "next")
	writeBundle(t, next, made.Add(time.Hour), sample(10))
	base := "images/tiny/rootfs-01.ext4"
	needs := func(_ Record, swap func([]string) error) error { return swap([]string{base}) }
	if err := Install(t.Context(), dir, next, Terms{}, needs, quiet); err != nil {
		t.Fatal(err)
	}
	both := sample(10)
	both[base] = sample(1)[base]
	intact(t, dir, both)
	if got := packBundle(t, dir); !bytes.Equal(got, packBundle(t, next)) {
		t.Error("what is kept was packed, or something else differs")
	}
	// Back and forth: it is there already, and stays when the one that has it goes.
	for _, want := range []map[string][]byte{sample(1), both} {
		if err := Rollback(dir, needs); err != nil {
			t.Fatal(err)
		}
		intact(t, dir, want)
	}
	// A rollback that was killed had it linked already, and not yet written down.
	killed := filepath.Join(t.TempDir(), "banger")
	writeBundle(t, killed, made, sample(1))
	if err := errors.Join(Install(t.Context(), killed, next, Terms{DropOld: true}, nobody, quiet), Rollback(killed, nobody)); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.MkdirAll(filepath.Join(killed+previousSuffix, "images/tiny"), 0o755),
		os.Link(filepath.Join(killed, base), filepath.Join(killed+previousSuffix, base))); err != nil {
		t.Fatal(err)
	}
	if err := Rollback(killed, needs); err != nil {
		t.Fatal(err)
	}
	intact(t, killed, both)
	last := filepath.Join(t.TempDir(), "last")
	writeBundle(t, last, made.Add(2*time.Hour), sample(30))
	if err := Install(t.Context(), dir, last, Terms{DropOld: true}, nobody, quiet); err != nil {
		t.Fatal(err)
	}
	intact(t, dir, sample(30))
	if _, err := os.Stat(filepath.Join(dir, base)); !os.IsNotExist(err) {
		t.Errorf("what nobody needs any more is still there: %v", err)
	}
	// Another file of that name would change disks under their VMs.
	clash := sample(1)
	clash["images/odd/odd-1e"] = []byte("other")
	writeBundle(t, next+"2", made.Add(3*time.Hour), clash)
	needs = func(_ Record, swap func([]string) error) error { return swap([]string{"images/odd/odd-1e"}) }
	if err := Install(t.Context(), dir, next+"2", Terms{}, needs, quiet); errs.KindOf(err) != errs.Conflict {
		t.Errorf("a clash: %v", err)
	}
	intact(t, dir, sample(30))
}

// Nobody knows on which images disks of another banger's are based, so all stay, whatever bundle
// comes, until someone says that they may go.
func TestInstallKeepsWhatOthersNeed(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "banger")
	writeBundle(t, dir, made, sample(1))
	base := "images/tiny/rootfs-01.ext4"
	next := func(seed byte) string {
		from := filepath.Join(t.TempDir(), "next")
		writeBundle(t, from, made.Add(time.Duration(seed)*time.Hour), sample(seed))
		return from
	}
	stays := func(when string, want map[string][]byte) {
		t.Helper()
		want[base] = sample(1)[base]
		if intact(t, dir, want); t.Failed() {
			t.Fatal(when)
		}
	}
	for _, seed := range []byte{10, 20} {
		if err := Install(t.Context(), dir, next(seed), Terms{}, nobody, quiet); err != nil {
			t.Fatal(err)
		}
		stays("after an installation", sample(seed))
	}
	for _, seed := range []byte{10, 20} {
		if err := Rollback(dir, nobody); err != nil {
			t.Fatal(err)
		}
		stays("after a rollback", sample(seed))
	}
	if err := Install(t.Context(), dir, next(30), Terms{DropOld: true}, nobody, quiet); err != nil {
		t.Fatal(err)
	}
	intact(t, dir, sample(30))
	if r, err := ReadRecord(dir); err != nil || len(r.Files()) != len(sample(30)) {
		t.Errorf("%d files are left, %v", len(r.Files()), err)
	}
	if err := Rollback(dir, nobody); err != nil {
		t.Fatal(err)
	}
	stays("after that was taken back", sample(20))
}

// However an installation was cut short, the next one and a rollback find either bundle whole,
// and the one before it.
func TestSettle(t *testing.T) {
	exchange := func(t *testing.T, dir, stage string) {
		if err := replaceDir(stage, dir); err != nil {
			t.Fatal(err)
		}
	}
	for name, c := range map[string]struct {
		cut     func(t *testing.T, dir, stage string)
		is, was byte
	}{
		"before the exchange": {func(*testing.T, string, string) {}, 10, 1},
		"after it":            {exchange, 20, 10},
		"while the one before the last was dropped": {func(t *testing.T, dir, stage string) {
			exchange(t, dir, stage)
			if err := os.Remove(filepath.Join(dir+previousSuffix, "kernels/debian/vmlinux")); err != nil {
				t.Fatal(err)
			}
		}, 20, 10},
		"after it was": {func(t *testing.T, dir, stage string) {
			exchange(t, dir, stage)
			if err := os.RemoveAll(dir + previousSuffix); err != nil {
				t.Fatal(err)
			}
		}, 20, 10},
	} {
		for _, then := range []string{"rollback", "install"} {
			t.Run(name+", then "+then, func(t *testing.T) {
				dir := filepath.Join(t.TempDir(), "banger")
				writeBundle(t, dir, made.Add(10*time.Hour), sample(10))
				writeBundle(t, dir+previousSuffix, made.Add(time.Hour), sample(1))
				number, err := numberOf(dir)
				if err != nil {
					t.Fatal(err)
				}
				stage := fmt.Sprintf("%s.%d%s", dir, number, stageSuffix)
				writeBundle(t, stage, made.Add(20*time.Hour), sample(20))
				c.cut(t, dir, stage)
				if then == "rollback" {
					if err := Rollback(dir, nobody); err != nil {
						t.Fatal(err)
					}
					intact(t, dir, sample(c.was))
					intact(t, dir+previousSuffix, sample(c.is))
				} else {
					last := filepath.Join(t.TempDir(), "last")
					writeBundle(t, last, made.Add(30*time.Hour), sample(30))
					if err := Install(t.Context(), dir, last, Terms{DropOld: true}, nobody, quiet); err != nil {
						t.Fatal(err)
					}
					intact(t, dir, sample(30))
					intact(t, dir+previousSuffix, sample(c.is))
				}
				if left := beside(t, dir); !slices.Equal(left, []string{previousSuffix}) {
					t.Errorf("beside it lies %v", left)
				}
			})
		}
	}
}
