//go:build faults

package host

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

var door sync.Mutex

// Fault is the door through which tests make the host fail. BANGER_FAULTS names a file with a
// line "fail N", "kill N" or "halt N": the Nth effect from then on fails, or the process dies at it, or it
// stands still there until it is sent SIGCONT.
// Each passed door takes one from N and adds its label to the lines below; when N is
// reached the first line goes, so that whatever comes after is done.
func Fault(label string) error {
	path := os.Getenv("BANGER_FAULTS")
	if path == "" {
		return nil
	}
	door.Lock()
	defer door.Unlock()
	text, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	order, passed, _ := strings.Cut(string(text), "\n")
	what, number, ok := strings.Cut(order, " ")
	n, err := strconv.Atoi(number)
	if !ok || err != nil {
		return nil
	}
	rest := "\n"
	if n > 1 {
		rest = fmt.Sprintf("%s %d\n", what, n-1)
	}
	if err := os.WriteFile(path, []byte(rest+passed+label+"\n"), 0o600); err != nil {
		panic(err)
	}
	switch {
	case n > 1:
		return nil
	case what == "kill":
		unix.Kill(os.Getpid(), unix.SIGKILL)
		select {}
	case what == "halt":
		unix.Kill(os.Getpid(), unix.SIGSTOP)
		return nil
	}
	return fmt.Errorf("%s: %w", label, unix.EIO)
}
