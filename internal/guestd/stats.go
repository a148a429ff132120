package guestd

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/guest/proto"
)

// ticks is the kernel's USER_HZ on every architecture there is: the unit of /proc/stat.
const ticks = 100

func kernelAndUptime() (release string, uptimeMS int64, err error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "", 0, err
	}
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		return "", 0, err
	}
	return unix.ByteSliceToString(u.Release[:]), t.Nano() / int64(time.Millisecond), nil
}

func readStats(root string) (proto.Stats, error) {
	var s proto.Stats
	var fs unix.Statfs_t
	if err := unix.Statfs(root, &fs); err != nil {
		return s, fmt.Errorf("statfs %s: %w", root, err)
	}
	s.RootTotalBytes = int64(fs.Blocks) * fs.Bsize
	s.RootFreeBytes = int64(fs.Bavail) * fs.Bsize
	for name, parse := range map[string]func(*proto.Stats, []byte){
		"proc/meminfo": parseMeminfo, "proc/loadavg": parseLoadavg, "proc/stat": parseStat, "proc/net/dev": parseNetDev,
	} {
		file, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			return s, err
		}
		parse(&s, file)
	}
	return s, nil
}

func parseMeminfo(s *proto.Stats, file []byte) {
	for f := range words(file) {
		if len(f) < 2 {
			continue
		}
		kib, _ := strconv.ParseInt(f[1], 10, 64)
		switch f[0] {
		case "MemTotal:":
			s.MemoryTotalBytes = kib << 10
		case "MemAvailable:":
			s.MemoryAvailableBytes = kib << 10
		}
	}
}

func parseLoadavg(s *proto.Stats, file []byte) {
	for f := range words(file) {
		if len(f) > 0 {
			s.Load1, _ = strconv.ParseFloat(f[0], 64)
		}
	}
}

// parseStat sums what the CPUs did but for idle (field 4), waiting for I/O (5) and guest
// time (9, 10), which is in user and nice already.
func parseStat(s *proto.Stats, file []byte) {
	for f := range words(file) {
		if len(f) < 9 || f[0] != "cpu" {
			continue
		}
		for _, i := range []int{1, 2, 3, 6, 7, 8} {
			n, _ := strconv.ParseFloat(f[i], 64)
			s.CPUSeconds += n / ticks
		}
	}
}

// parseNetDev sums all interfaces but loopback: after the name, field 1 is the bytes
// received and field 9 the bytes sent.
func parseNetDev(s *proto.Stats, file []byte) {
	lines := bufio.NewScanner(bytes.NewReader(file))
	for lines.Scan() {
		name, rest, ok := strings.Cut(lines.Text(), ":")
		f := strings.Fields(rest)
		if !ok || len(f) < 9 || strings.TrimSpace(name) == "lo" {
			continue
		}
		rx, _ := strconv.ParseInt(f[0], 10, 64)
		tx, _ := strconv.ParseInt(f[8], 10, 64)
		s.RxBytes += rx
		s.TxBytes += tx
	}
}

func words(file []byte) func(yield func([]string) bool) {
	return func(yield func([]string) bool) {
		lines := bufio.NewScanner(bytes.NewReader(file))
		for lines.Scan() {
			if !yield(strings.Fields(lines.Text())) {
				return
			}
		}
	}
}
