package host

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
)

// KillMarked ends the processes whose environment has the given K=V, which a program hands on to all that it
// starts: what is still at work of one whose starter was killed. The value must be one that nobody else can
// come to have. Processes that this user can't look into are passed over.
func KillMarked(ctx context.Context, mark string) error {
	for {
		found, err := marked(mark)
		if err != nil || len(found) == 0 {
			return err
		}
		for _, p := range found {
			err = errors.Join(err, p.Kill(ctx))
		}
		if err != nil {
			return err
		}
		// They may have started others meanwhile.
	}
}

func marked(mark string) (found []Process, err error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		p, err := Identify(pid)
		if err != nil { // it has gone meanwhile
			continue
		}
		environ, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
		if err == nil && bytes.Contains(append([]byte{0}, environ...), []byte("\x00"+mark+"\x00")) {
			found = append(found, p)
		}
	}
	return found, nil
}
