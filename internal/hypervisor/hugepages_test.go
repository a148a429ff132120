package hypervisor

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"banger/internal/errs"
)

func TestCheckHugePages(t *testing.T) {
	for name, c := range map[string]struct {
		free, reserved string
		bytes          int64
		want           errs.Kind
		says           string
	}{
		"enough":         {"64\n", "0\n", 128 << 20, "", ""},
		"promised":       {"64\n", "1\n", 128 << 20, errs.Unavailable, "takes 64 huge pages, and this host has 63"},
		"none":           {"0\n", "0\n", 128 << 20, errs.Unavailable, "has 0"},
		"not whole":      {"64\n", "0\n", 127 << 20, errs.Invalid, "127 MiB"},
		"no such thing":  {"", "", 128 << 20, errs.Unavailable, "no huge pages"},
		"no number here": {"x", "0\n", 128 << 20, errs.Internal, "x"},
	} {
		root := t.TempDir()
		dir := filepath.Join(root, "sys/kernel/mm/hugepages/hugepages-2048kB")
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		for file, text := range map[string]string{"free_hugepages": c.free, "resv_hugepages": c.reserved} {
			if text == "" {
				continue
			}
			if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		err := CheckHugePages(root, c.bytes)
		if c.says == "" {
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		if err == nil || errs.KindOf(err) != c.want || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
