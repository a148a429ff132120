package firecracker

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"banger/internal/hypervisor/console"
)

const (
	logFile  = "firecracker.log" // what Firecracker itself writes, of the machine's last start
	logBytes = 256 << 10         // at which it begins anew, with the one before it kept
)

// drain keeps what Firecracker writes until it has gone.
type drain struct {
	pipe io.Closer
	done chan struct{} // closed when all that it has written is kept
}

// openDrain starts to keep what comes through the log's pipe.
func openDrain(dir string) (*drain, error) {
	pipe, err := openPipe(dir, logPipe, unix.O_RDONLY)
	if err != nil {
		return nil, err
	}
	ring, err := console.OpenRing(filepath.Join(dir, logFile), logBytes)
	if err != nil {
		pipe.Close()
		return nil, err
	}
	d := &drain{pipe: pipe, done: make(chan struct{})}
	go func() {
		defer close(d.done)
		defer ring.Close()
		defer pipe.Close()
		_, _ = io.Copy(onlyWriter{ring}, pipe) // any error is the end of the process
	}()
	return d, nil
}

// onlyWriter hides a writer's other methods from io.Copy.
type onlyWriter struct{ io.Writer }

func (d *drain) close() {
	d.pipe.Close()
	<-d.done
}

// forgetLog removes the log of an earlier start.
func forgetLog(dir string) error {
	for _, name := range []string{logFile, logFile + ".1"} {
		if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

// logTail reads the end of the log, in whole lines.
func logTail(dir string) []byte {
	f, err := os.Open(filepath.Join(dir, logFile))
	if err != nil {
		return nil
	}
	defer f.Close()
	const most = 8 << 10 // bytes
	info, err := f.Stat()
	if err != nil {
		return nil
	}
	begin := max(0, info.Size()-most)
	b := make([]byte, most)
	n, _ := f.ReadAt(b, begin)
	if b = b[:n]; begin > 0 { // it is in the middle of a line, most likely
		_, b, _ = bytes.Cut(b, []byte("\n"))
	}
	return b
}

// logLine is a line of the log: a time, who writes it, a level and what is said. What is
// written without that is Firecracker's standard error.
var logLine = regexp.MustCompile(`^\S+ \[[^]]*:([A-Z]+)\] (.*)$`)

// lastWords returns the last errors that Firecracker wrote, as one, or "".
func lastWords(dir string) string {
	var said []string
	for line := range bytes.Lines(logTail(dir)) {
		text := strings.TrimSpace(string(line))
		if m := logLine.FindStringSubmatch(text); m != nil {
			if m[1] != "ERROR" {
				continue
			}
			text = m[2]
		}
		// Of devices that a kernel looks for in vain, and what the end is told by anyway.
		if text == "" || strings.Contains(text, "MissingAddressRange") || exitCode.MatchString(text) {
			continue
		}
		said = append(said, printable(text))
	}
	return strings.Join(said[max(0, len(said)-3):], "; ")
}

var exitCode = regexp.MustCompile(`Firecracker exiting [a-z ]+\. exit_code=(\d+)`)

// loggedExit returns the exit code that Firecracker has written down, as its last words, for
// those who are not its parent.
func loggedExit(dir string) (code int, ok bool) {
	all := exitCode.FindAllSubmatch(logTail(dir), -1)
	if len(all) == 0 {
		return 0, false
	}
	code, err := strconv.Atoi(string(all[len(all)-1][1]))
	return code, err == nil
}
