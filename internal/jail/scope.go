package jail

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/dbus"
	"github.com/coreos/go-systemd/v22/unit"
	bus "github.com/godbus/dbus/v5"

	"banger/internal/host"
)

// Where systemd runs, all cgroups are its own: it may do as it likes with one that somebody else
// has made. So there each process is in a scope, the unit that systemd has for what others start.
// It is not in the daemon's unit, whose end it outlives. A scope goes with its last process.

// slice has all scopes, for a host's limits of all VMs together: systemctl set-property.
const slice = "banger.slice"

const scopeSuffix = ".scope"

// managerLimit bounds the wait for systemd.
const managerLimit = 30 * time.Second

func systemdRuns() bool {
	info, err := os.Lstat("/run/systemd/system")
	return err == nil && info.IsDir()
}

// scopeName is another for each process, so that no scope is in the way of the next: systemd
// forgets them when it comes to it.
func scopeName(home string, pid int) string {
	return fmt.Sprintf("%s-%s-%d%s", mark(filepath.Dir(home)), unit.UnitNameEscape(filepath.Base(home)), pid, scopeSuffix)
}

// startScope has systemd make a scope for this process, which is that of home.
func startScope(home string, l Limits) error {
	property := func(name string, value any) dbus.Property {
		return dbus.Property{Name: name, Value: bus.MakeVariant(value)}
	}
	properties := []dbus.Property{
		dbus.PropDescription("A virtual machine of banger: " + home), dbus.PropSlice(slice), dbus.PropPids(uint32(os.Getpid())),
		property("CollectMode", "inactive-or-failed"),
		// When the host goes down the daemon goes first: what ran then is to run again.
		dbus.PropBefore("bangerd.service"),
	}
	if l.MemoryBytes > 0 {
		properties = append(properties, property("MemoryMax", uint64(l.MemoryBytes)))
	}
	if l.Processes > 0 {
		properties = append(properties, property("TasksMax", uint64(l.Processes)))
	}
	if l.CPUs > 0 { // microseconds of a second
		properties = append(properties, property("CPUQuotaPerSecUSec", uint64(l.CPUs)*uint64(time.Second.Microseconds())))
	}
	return withManager(func(ctx context.Context, m *dbus.Conn, done chan<- string) error {
		_, err := m.StartTransientUnitContext(ctx, scopeName(home, os.Getpid()), "fail", properties, done)
		return err
	})
}

// stopScopes ends what is left of the scopes of home, and waits until they are gone.
func stopScopes(home string) error {
	found, err := scopes(filepath.Dir(home))
	for _, o := range found {
		if o.Path != filepath.Base(home) {
			continue
		}
		err = errors.Join(err, withManager(func(ctx context.Context, m *dbus.Conn, done chan<- string) error {
			_, err := m.StopUnitContext(ctx, filepath.Base(o.Name), "replace", done)
			if e, ok := errors.AsType[bus.Error](err); ok && e.Name == "org.freedesktop.systemd1.NoSuchUnit" {
				done <- jobDone
				return nil
			}
			return err
		}))
	}
	return err
}

// jobDone is systemd's word for a job that has succeeded.
const jobDone = "done"

// withManager has systemd start a job and waits for its end.
func withManager(start func(ctx context.Context, m *dbus.Conn, done chan<- string) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), managerLimit)
	defer cancel()
	// By its own socket, for which no bus has to run.
	m, err := dbus.NewSystemdConnectionContext(ctx)
	if err != nil {
		return fmt.Errorf("reach systemd: %w", err)
	}
	defer m.Close()
	done := make(chan string, 1)
	if err := start(ctx, m, done); err != nil {
		return fmt.Errorf("ask systemd: %w", err)
	}
	select {
	case result := <-done:
		if result != jobDone {
			return fmt.Errorf("systemd's job ended with %q", result)
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for systemd: %w", ctx.Err())
	}
}

// scopes lists the scopes of homes in dir.
func scopes(dir string) ([]host.Object, error) {
	groups := filepath.Join(groupRoot, slice)
	entries, err := os.ReadDir(groups)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var found []host.Object
	for _, e := range entries {
		rest, ours := strings.CutPrefix(e.Name(), mark(dir)+"-")
		name, pid := rest, strings.LastIndexByte(rest, '-')
		if !ours || pid < 0 || !strings.HasSuffix(name, scopeSuffix) {
			continue
		}
		found = append(found, groupObject(filepath.Join(groups, e.Name()), unit.UnitNameUnescape(name[:pid])))
	}
	return found, err
}
