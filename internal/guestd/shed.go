package guestd

import (
	"errors"
	"fmt"
	"golang.org/x/sys/unix"

	"banger/internal/guest/proto"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// Shed has the kernel and that init be as a clone finds them best: its interfaces without
// addresses, a file of ours in the place of the boot id, and no journal running.
func (l *Linux) Shed(init string) error {
	awaitIdle() // before the journal rests, which it does not for long
	id, err := os.ReadFile(kernelBootID)
	if err == nil {
		err = l.SetBootID(strings.TrimSpace(string(id)))
	}
	var bared error
	l.bare, bared = bareLinks()
	return errors.Join(err, bared, l.restJournal(init))
}

// A machine is idle when its CPUs had little to do for a while. Nothing tells when that is so.
const (
	idleWindow  = 250 * time.Millisecond
	idleWindows = 4    // that a machine has been idle for
	idleLimit   = 0.05 // seconds of CPU time in a window
	idleTimeout = 30 * time.Second
)

// awaitIdle waits until what a boot has set in motion and nobody waited for has come to rest, a
// login at the console say: each clone would go on with it, at its user's cost.
func awaitIdle() {
	quiet, end := 0, time.Now().Add(idleTimeout)
	for last := busy(); quiet < idleWindows && time.Now().Before(end); {
		time.Sleep(idleWindow)
		now := busy()
		if quiet++; now-last > idleLimit {
			quiet = 0
		}
		last = now
	}
}

// busy returns how many seconds all CPUs have worked since the boot.
func busy() float64 {
	var s proto.Stats
	if file, err := os.ReadFile("/proc/stat"); err == nil { // else it is idle as far as can be told
		parseStat(&s, file)
	}
	return s.CPUSeconds
}

// journalRest is a drop-in by which systemd, asked to end its journal, starts it again when
// something is written to it, or after three seconds: services that were connected to it before don't
// wake it, and would wait for it once their pipes are full.
const (
	journalRest     = "/run/systemd/system/systemd-journald.service.d/banger.conf"
	journalRestText = "[Service]\nRestartSec=3s\n"
)

// restJournal ends systemd's journal for the time being: it has read the ids once and for all.
func (l *Linux) restJournal(init string) error {
	journal := findJournal(init)
	if journal < 0 {
		return nil
	}
	defer unix.Close(journal)
	systemctl, err := lookPath("systemctl", rootPath, "/")
	if err == nil {
		err = os.MkdirAll(filepath.Dir(journalRest), 0o755)
	}
	if err == nil {
		err = os.WriteFile(journalRest, []byte(journalRestText), 0o644)
	}
	if err == nil {
		cmd := exec.Command(systemctl, "daemon-reload")
		if err = l.Exposed(cmd.Start); err == nil {
			err = cmd.Wait()
		}
	}
	if err == nil {
		err = unix.PidfdSendSignal(journal, unix.SIGTERM, nil, 0)
	}
	if err != nil {
		return fmt.Errorf("end the journal: %w", err)
	}
	for { // readable once it has ended
		switch n, err := unix.Poll([]unix.PollFd{{Fd: int32(journal), Events: unix.POLLIN}}, int(journalLimit.Milliseconds())); {
		case err == unix.EINTR:
		case n != 1:
			return errors.Join(errors.New("the journal does not end"), err)
		default:
			return nil
		}
	}
}

const journalLimit = 30 * time.Second
