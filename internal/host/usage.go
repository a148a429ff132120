package host

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Usage is what a process takes of the host.
type Usage struct {
	CPU        time.Duration // since its start, on all CPUs together
	PSSBytes   int64         // memory that it has resident; what it shares is counted in parts
	ReadBytes  int64         // from disks, since its start; caches spare many
	WriteBytes int64         // to disks
}

// clockTick is the unit of times in /proc/PID/stat on every Linux.
const clockTick = time.Second / 100

// Usage reads what the process takes now. errs.NotFound if it is not running any more.
func (p Process) Usage() (u Usage, err error) {
	for name, parse := range map[string]func(*Usage, []byte) error{
		"stat": parseCPU, "smaps_rollup": parsePSS, "io": parseIO,
	} {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", p.PID, name))
		switch {
		case errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH):
			return Usage{}, gone(p.PID)
		case err != nil:
			return Usage{}, err
		}
		if err := parse(&u, b); err != nil {
			return Usage{}, fmt.Errorf("/proc/%d/%s: %w", p.PID, name, err)
		}
	}
	// Asked afterwards: what was read was this process's if it still has its pid.
	if now, err := Identify(p.PID); err != nil {
		return Usage{}, err
	} else if now != p {
		return Usage{}, gone(p.PID)
	}
	return u, nil
}

// parseCPU reads utime and stime, fields 14 and 15 of /proc/PID/stat.
func parseCPU(u *Usage, b []byte) error {
	fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	const utime = 14 - 3 // fields are numbered from 1, and the first left is number 3
	if len(fields) < utime+2 {
		return errors.New("it is cut short")
	}
	for _, f := range fields[utime : utime+2] {
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return err
		}
		u.CPU += time.Duration(n) * clockTick
	}
	return nil
}

func parsePSS(u *Usage, b []byte) error {
	for _, label := range []string{"Pss:", "Private_Hugetlb:"} { // huge pages are in none of the others
		kib, err := numberAfter(b, label)
		if err != nil {
			return err
		}
		u.PSSBytes += kib << 10
	}
	return nil
}

func parseIO(u *Usage, b []byte) (err error) {
	if u.ReadBytes, err = numberAfter(b, "read_bytes:"); err != nil {
		return err
	}
	u.WriteBytes, err = numberAfter(b, "write_bytes:") // not the cancelled ones, which stand in a later line
	return err
}

// numberAfter finds the line that begins with the label and returns the number behind it.
func numberAfter(b []byte, label string) (int64, error) {
	for line := range bytes.Lines(b) {
		if rest, ok := bytes.CutPrefix(line, []byte(label)); ok {
			if f := bytes.Fields(rest); len(f) > 0 {
				return strconv.ParseInt(string(f[0]), 10, 64)
			}
		}
	}
	return 0, fmt.Errorf("there is no line %q", label)
}
