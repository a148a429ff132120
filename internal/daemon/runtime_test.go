package daemon

import (
	"os"
	"path/filepath"
	"testing"

	"banger/internal/disk"
)

// A base is in the bundle whichever of its names either is known by.
func TestWithin(t *testing.T) {
	root := t.TempDir()
	real, link := filepath.Join(root, "real"), filepath.Join(root, "link")
	if err := os.MkdirAll(filepath.Join(real, "images"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(real, "images/a.ext4"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(real, link); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{real, link} {
		for _, path := range []string{real, link} {
			if rel, ok := within(dir, &disk.Base{Path: filepath.Join(path, "images/a.ext4")}); !ok || rel != "images/a.ext4" {
				t.Errorf("%s in %s: %q, %v", path, dir, rel, ok)
			}
		}
		if rel, ok := within(dir, &disk.Base{Path: filepath.Join(root, "other/a.ext4")}); ok {
			t.Errorf("what is elsewhere is %q", rel)
		}
		if rel, ok := within(dir, &disk.Base{Path: filepath.Join(dir, "images/gone.ext4")}); !ok || rel != "images/gone.ext4" {
			t.Errorf("what is gone is %q, %v", rel, ok)
		}
	}
}
