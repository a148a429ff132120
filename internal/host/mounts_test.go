package host

import (
	"path/filepath"
	"slices"
	"testing"
)

func TestMountsBelow(t *testing.T) {
	if got, err := MountsBelow(t.TempDir()); err != nil || got != nil {
		t.Errorf("an empty directory: %q, %v", got, err)
	}
	if got, err := MountsBelow(t.TempDir() + "/none"); err != nil || got != nil {
		t.Errorf("none: %q, %v", got, err)
	}
	all, err := mountsIn("")
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range all {
		if dir := filepath.Dir(o.Name); dir != "/" {
			if got, err := MountsBelow(dir); err == nil && !slices.Contains(got, o.Name) {
				t.Errorf("below %s: %q, which lacks %s", dir, got, o.Name)
			}
			return
		}
	}
}
