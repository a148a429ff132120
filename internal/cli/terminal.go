package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"banger/api"
)

// terminal returns the descriptor of the terminal that stream is, if it is one.
func terminal(stream any) (fd int, ok bool) {
	f, ok := stream.(*os.File)
	if !ok {
		return 0, false
	}
	return int(f.Fd()), term.IsTerminal(int(f.Fd()))
}

func isTerminal(stream any) bool {
	_, ok := terminal(stream)
	return ok
}

// isNull tells whether stream is /dev/null.
func isNull(stream any) bool {
	f, ok := stream.(*os.File)
	if !ok {
		return false
	}
	var st unix.Stat_t
	return unix.Fstat(int(f.Fd()), &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == unix.Mkdev(1, 3)
}

// raw puts the terminal that standard input is into raw mode, in which keys reach the guest
// unchanged, and returns what puts it back. Where standard input is none, it does nothing.
func (a *app) raw() (restore func(), err error) {
	fd, ok := terminal(a.Stdin)
	if !ok {
		return func() {}, nil
	}
	old, err := term.MakeRaw(fd)
	if err != nil {
		return nil, err
	}
	return func() { _ = term.Restore(fd, old) }, nil // fails only if the terminal has gone
}

// sizeOf returns the size of the person's terminal, or the classic one where there is none.
func (a *app) sizeOf() api.Size {
	for _, stream := range []any{a.Stdout, a.Stdin} {
		if fd, ok := terminal(stream); ok {
			if cols, rows, err := term.GetSize(fd); err == nil && cols > 0 && rows > 0 {
				return api.Size{Rows: uint16(rows), Cols: uint16(cols)}
			}
		}
	}
	return api.Size{Rows: 24, Cols: 80}
}

// resizes sends the terminal's size each time it changes, until ctx ends.
func (a *app) resizes(ctx context.Context) <-chan api.Size {
	changed := make(chan os.Signal, 1)
	signal.Notify(changed, syscall.SIGWINCH)
	sizes := make(chan api.Size)
	go func() {
		defer signal.Stop(changed)
		for {
			select {
			case <-changed:
			case <-ctx.Done():
				return
			}
			select {
			case sizes <- a.sizeOf():
			case <-ctx.Done():
				return
			}
		}
	}()
	return sizes
}

// password reads one from the environment, or from the person at the terminal.
func (a *app) password(prompt string) (string, error) {
	if p, ok := a.lookupEnv(keyPassword); ok {
		return p, nil
	}
	fd, ok := terminal(a.Stdin)
	if !ok {
		return "", errors.New("there is no terminal to ask for its password")
	}
	fmt.Fprintf(a.Stderr, "%s: ", shown(prompt))
	p, err := term.ReadPassword(fd)
	fmt.Fprintln(a.Stderr)
	return string(p), err
}
