package daemon

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"banger/api"
)

// Whatever is not well says what to do, and what mends it is a command.
func TestDoctorSaysWhatToDo(t *testing.T) {
	d := open(t, options(t))
	defer d.Close()
	found := map[string]api.Check{}
	for _, c := range d.checkHost(t.Context()) {
		found[c.Name] = c
		if c.Status != ok && c.Hint == "" && c.Name != "bundle files" && c.Name != "time" {
			t.Errorf("%+v does not say what to do", c)
		}
		if c.Status == ok && (c.Fix != nil || c.Hint != "") || c.Detail == "" {
			t.Errorf("%+v", c)
		}
	}
	for _, name := range []string{"tools", "device-mapper", "time", "memory", "inodes", "bundle files", "leftovers"} {
		if _, there := found[name]; !there {
			t.Errorf("nothing is said of %s", name)
		}
	}
	if c := found["leftovers"]; c.Status != ok {
		t.Errorf("leftovers: %+v", c)
	}
	// What lies in the directory of a VM that does not exist is left over.
	if err := os.MkdirAll(filepath.Join(d.opts.Config.StateDir, "vms", "0123456789ab"), 0o700); err != nil {
		t.Fatal(err)
	}
	if c := d.checkCensus(t.Context()); c.Status != warning || strings.Join(c.Fix, " ") != "banger system prune -y" {
		t.Errorf("with a leftover: %+v", c)
	}
}

func TestCheckTools(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	d := &Daemon{}
	if c := d.checkTools(); c.Status == ok && !strings.Contains(c.Detail, "all programs") || c.Status == warning && (c.Fix[0] != "apt-get" || !strings.Contains(c.Detail, ": ")) {
		t.Errorf("%+v", c)
	}
}
