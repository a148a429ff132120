package shelf

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"banger/internal/errs"
)

type thing struct {
	Colour string `json:"colour"`
}

var things = Shelf{Kind: "thing", Record: "thing.json"}

func put(t *testing.T, root, name, colour string) string {
	t.Helper()
	st, err := things.Begin(root, name, false)
	if err != nil {
		t.Fatal(err)
	}
	defer st.Discard()
	if err := st.Write("blob", []byte("content")); err != nil {
		t.Fatal(err)
	}
	dir, err := st.Commit(thing{colour})
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func names(t *testing.T, roots ...string) string {
	t.Helper()
	dirs, err := things.List(roots...)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, d := range dirs {
		out = append(out, filepath.Base(d))
	}
	return strings.Join(out, " ")
}

func TestItems(t *testing.T) {
	mine, theirs := filepath.Join(t.TempDir(), "mine"), filepath.Join(t.TempDir(), "theirs")
	if got := names(t, mine, theirs); got != "" {
		t.Errorf("roots that do not exist have %q", got)
	}
	put(t, theirs, "b", "blue")
	put(t, theirs, "a", "red")
	put(t, mine, "b", "green")
	if got := names(t, mine, theirs); got != "a b" {
		t.Errorf("list is %q", got)
	}
	dir, err := things.Find("b", mine, theirs)
	if err != nil {
		t.Fatal(err)
	}
	var v thing
	if _, err := things.Load(dir, &v); err != nil || v.Colour != "green" {
		t.Errorf("b is %q (%v), and the earlier root's is green", v.Colour, err)
	}
	if _, err := things.Begin(mine, "b", false); errs.KindOf(err) != errs.Conflict {
		t.Errorf("a taken name: %v", err)
	}
	if err := things.Remove(mine, "b"); err != nil {
		t.Fatal(err)
	}
	if err := things.Remove(mine, "b"); errs.KindOf(err) != errs.NotFound {
		t.Errorf("removed twice: %v", err)
	}
	if _, err := things.Find("c", mine, theirs); errs.KindOf(err) != errs.NotFound {
		t.Errorf("unknown name: %v", err)
	}
	left, err := os.ReadDir(mine)
	if err != nil || len(left) != 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
}

func TestUnfinishedIsUnseen(t *testing.T) {
	root := t.TempDir()
	first, err := things.Begin(root, "a", false)
	if err != nil {
		t.Fatal(err)
	}
	second, err := things.Begin(root, "a", false)
	if err != nil {
		t.Fatal(err)
	}
	if got := names(t, root); got != "" {
		t.Errorf("an unfinished item is listed: %q", got)
	}
	if left, err := Leftovers(root); err != nil || len(left) != 2 {
		t.Errorf("stages: %v %v", left, err)
	}
	if _, err := second.Commit(thing{"red"}); err != nil {
		t.Fatal(err)
	}
	if _, err := first.Commit(thing{"blue"}); errs.KindOf(err) != errs.Conflict {
		t.Errorf("the later commit: %v", err)
	}
	if err := first.Discard(); err != nil {
		t.Fatal(err)
	}
	if err := second.Discard(); err != nil {
		t.Fatal(err)
	}
	left, err := os.ReadDir(root)
	if err != nil || len(left) != 1 {
		t.Errorf("left behind: %v %v", left, err)
	}
	info, err := os.Stat(filepath.Join(root, "a"))
	if err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("the item's mode: %v %v", info.Mode(), err)
	}
}

func TestReplace(t *testing.T) {
	root := t.TempDir()
	dir := put(t, root, "a", "red")
	for _, colour := range []string{"green", "blue"} {
		st, err := things.Begin(root, "a", true)
		if err != nil {
			t.Fatal(err)
		}
		var v thing
		if _, err := things.Load(dir, &v); err != nil || v.Colour == colour {
			t.Errorf("before the commit: %v, %v", v, err)
		}
		if _, err := st.Commit(thing{colour}); err != nil {
			t.Fatal(err)
		}
		if err := st.Discard(); err != nil {
			t.Fatal(err)
		}
		if _, err := things.Load(dir, &v); err != nil || v.Colour != colour {
			t.Errorf("after the commit: %v, %v", v, err)
		}
	}
	left, err := os.ReadDir(root)
	if err != nil || len(left) != 1 {
		t.Errorf("left behind: %v %v", left, err)
	}
}

func TestNames(t *testing.T) {
	for _, name := range []string{"", "-", "a-", "-a", "A", "a.b", "..", ".", "a/b", "a\n", "\x1b[2J", "ä", strings.Repeat("a", 64), ".staging-x"} {
		if _, err := things.Begin(t.TempDir(), name, false); errs.KindOf(err) != errs.Invalid {
			t.Errorf("%q: %v", name, err)
		}
		if err := things.Remove(t.TempDir(), name); errs.KindOf(err) != errs.Invalid {
			t.Errorf("remove %q: %v", name, err)
		}
	}
	for _, name := range []string{"a", "0", "a-b", strings.Repeat("a", 63)} {
		put(t, t.TempDir(), name, "red")
	}
}

func TestDamagedRecord(t *testing.T) {
	dir := put(t, t.TempDir(), "a", "red")
	record := filepath.Join(dir, things.Record)
	if err := os.Chmod(record, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(record, []byte("{"), 0o644); err != nil {
		t.Fatal(err)
	}
	var v thing
	if _, err := things.Load(dir, &v); err == nil || errs.HintOf(err) == "" {
		t.Errorf("a damaged record: %v", err)
	}
}

// TestChecksumOfHoles compares with the plain way for files with holes at either end, in
// the middle, or nothing else.
func TestChecksumOfHoles(t *testing.T) {
	const mib = 1 << 20
	for name, at := range map[string][]int64{
		"empty": {}, "hole": {}, "start": {0}, "middle": {3*mib + 4096}, "end": {7 * mib}, "several": {0, 2 * mib, 5*mib + 17},
	} {
		path := filepath.Join(t.TempDir(), name)
		f, err := os.Create(path)
		if err != nil {
			t.Fatal(err)
		}
		size := int64(7*mib + 13)
		if name == "empty" {
			size = 0
		}
		if err := f.Truncate(size); err != nil {
			t.Fatal(err)
		}
		for _, off := range at {
			if _, err := f.WriteAt([]byte("something"), off); err != nil {
				t.Fatal(err)
			}
		}
		f.Close()
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		want := sha256.Sum256(b)
		last := int64(-1)
		sum, n, err := Checksum(context.Background(), path, func(done, total int64) { last = done })
		if err != nil || sum != hex.EncodeToString(want[:]) || n != size {
			t.Errorf("%s: %s, %d bytes, %v", name, sum, n, err)
		}
		if size > 0 && last != size {
			t.Errorf("%s: progress ended at %d of %d", name, last, size)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	path := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := Checksum(ctx, path, nil); err != context.Canceled {
		t.Errorf("cancelled: %v", err)
	}
}
