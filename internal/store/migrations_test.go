package store

import (
	"database/sql"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"banger/internal/disk"
	"banger/internal/vm"
)

// A database of every schema that there has been, as testdata has it, becomes one of today's,
// and all that is in it stays: VMs, what is theirs on the host, and what has happened.
func TestMigrations(t *testing.T) {
	steps, err := fs.Glob(migrations, "migrations/*.sql")
	if err != nil {
		t.Fatal(err)
	}
	for schema := 1; schema <= len(steps); schema++ {
		t.Run(fmt.Sprint("schema ", schema), func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "banger.db")
			load(t, path, fmt.Sprintf("testdata/schema-%d.sql", schema))
			for range 2 { // the second time there is nothing to do
				s := open(t, path)
				wantAll(t, s, schema)
				s.Close()
			}
			s := open(t, path)
			if _, err := s.Update(t.Context(), "ba9876543210", "started", func(x *vm.VM) error { return x.To(vm.Running, "") }); err != nil {
				t.Error(err)
			}
			if last, err := s.LastEvent(t.Context()); err != nil || last != 4 {
				t.Errorf("its next event has the number %d, %v", last, err)
			}
		})
	}
}

// load makes a database of SQL.
func load(t *testing.T, path, text string) {
	t.Helper()
	b, err := os.ReadFile(text)
	if err != nil {
		t.Fatalf("each schema has an example of itself: %v", err)
	}
	db, err := sql.Open("sqlite", "file:"+path)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.Exec(string(b)); err != nil {
		t.Fatal(err)
	}
}

func wantAll(t *testing.T, s *Store, schema int) {
	t.Helper()
	web, err := s.Get(t.Context(), "web")
	if err != nil {
		t.Fatal(err)
	}
	base := disk.Base{Path: "/var/lib/banger/images/tiny/rootfs-065814a53f1c46dc.ext4", Bytes: 256 << 20}
	volume := disk.Volume{Driver: "qcow2", Path: "/var/lib/banger/vms/0123456789ab/root.qcow2", VirtualBytes: 256 << 20, On: &base}
	if web.ID != "0123456789ab" || web.State != vm.Running || web.Spec.Image != "tiny" || web.Spec.CPUs != 2 || web.Spec.MemoryBytes != 512<<20 ||
		!reflect.DeepEqual(web.Spec.Env, []string{"A=b"}) || web.HostKey != "PEM of web" || web.StartTook != 2400*time.Millisecond ||
		!reflect.DeepEqual(web.Disk, volume) || web.Base.Path != base.Path {
		t.Errorf("web is %+v", web)
	}
	if m := web.Machine; m == nil || m.Process.PID != 4711 || m.Process.StartTicks != 815 || !strings.HasPrefix(m.Process.BootID, "7d9d0f3e") || m.VMID != web.ID {
		t.Errorf("its machine is %+v", m) // that runs on, to be adopted
	}
	if web.Spec.Autostart != (schema >= 2) || web.Address.IsValid() != (schema >= 4) || web.Spec.Isolated != (schema >= 4) {
		t.Errorf("what only later versions had is %t, %v, %t", web.Spec.Autostart, web.Address, web.Spec.Isolated)
	}
	db, err := s.Get(t.Context(), "db")
	if err != nil || db.State != vm.Stopped || db.Machine != nil || db.StoppedAt.IsZero() {
		t.Errorf("db is %+v, %v", db, err)
	}
	for id, want := range map[string]int{web.ID: 3, db.ID: 2} {
		all, err := s.Resources(t.Context(), id)
		for _, r := range all {
			if !r.Live {
				want = -1
			}
		}
		if err != nil || len(all) != want {
			t.Errorf("%s has %v, %v", id, all, err)
		}
	}
	events, err := s.Events(t.Context(), 0, 10)
	want := []vm.Event{
		{Seq: 1, At: time.Unix(1, 0).UTC(), VM: web.ID, Name: "web", To: vm.Creating, Cause: "create"},
		{Seq: 2, At: time.Unix(2, 0).UTC(), VM: web.ID, Name: "web", To: vm.Running, Cause: "started"},
		{Seq: 3, At: time.Unix(3, 0).UTC(), VM: "ffffffffffff", Name: "gone", Cause: "rm"},
	}
	if schema >= 2 { // before, where an event led from was not kept
		want[1].From, want[2].From = vm.Creating, vm.Stopped
	}
	if err != nil || !reflect.DeepEqual(events, want) {
		t.Errorf("events are %+v, %v", events, err)
	}
}
