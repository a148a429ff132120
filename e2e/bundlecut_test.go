package e2e

import (
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// numberedBundle is a bundle that has nothing but its number, and is newer than those of lower ones.
func numberedBundle(t *testing.T, number int) (dir string) {
	t.Helper()
	dir = t.TempDir()
	text := strconv.Itoa(number)
	if err := os.MkdirAll(filepath.Join(dir, "images"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "images/number"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	writeJSON(t, filepath.Join(dir, "bundle.json"), bundleRecord{Schema: 1, Artefacts: []bundleArtefact{{
		Name: "image/number", BuiltAt: time.Unix(int64(number)*3600, 0),
		Files: []bundleFile{{"images/number", int64(len(text)), fmt.Sprintf("%x", sha256.Sum256([]byte(text)))}},
	}}})
	return dir
}

// A daemon that dies, or fails, at any step of an installation leaves one bundle or the other, whole,
// and the one before it for a rollback.
func TestInstallationsAreCutShort(t *testing.T) {
	for _, how := range []string{"fail", "kill"} {
		t.Run(how, func(t *testing.T) {
			f := newFaulty(t)
			dir := filepath.Join(t.TempDir(), "lib")
			f.env = append(f.env, "BANGER_RUNTIME_DIR="+dir)
			is := func(when string, want int) {
				t.Helper()
				f.ok("runtime", "verify")
				if got, err := os.ReadFile(filepath.Join(dir, "images/number")); err != nil || string(got) != strconv.Itoa(want) {
					t.Fatalf("%s: the bundle is %s, want %d: %v", when, got, want, err)
				}
			}
			f.ok("runtime", "install", numberedBundle(t, 1))
			f.ok("runtime", "install", numberedBundle(t, 2))
			was, now, next := 1, 2, 3
			for n, struck := 1, true; struck; n++ {
				f.order(how, n)
				r := f.run("", "runtime", "install", numberedBundle(t, next))
				var steps []string
				steps, struck = f.settle()
				when := fmt.Sprintf("%s %d, at %v", how, n, steps)
				if struck && r.code == 0 {
					t.Errorf("%s: it reports success", when)
				}
				if got, err := os.ReadFile(filepath.Join(dir, "images/number")); err == nil && string(got) == strconv.Itoa(next) {
					was, now = now, next
				}
				is(when, now)
				f.ok("runtime", "fetch", "--rollback")
				is(when+", then a rollback", was)
				f.ok("runtime", "fetch", "--rollback")
				is(when+", then two", now)
				if left, err := filepath.Glob(dir + ".*"); err != nil || strings.Join(left, " ") != dir+".previous" {
					t.Errorf("%s: beside it lies %q, %v", when, left, err)
				}
				next++
			}
			if next < 7 { // three, and a step each
				t.Errorf("only %d installations were cut short", next-3)
			}
		})
	}
}
