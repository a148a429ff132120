package cli

import (
	"bytes"
	"context"
	"errors"
	"io"

	"github.com/spf13/cobra"

	"banger/api"
)

// leave is Ctrl-], the key that leaves a console.
const leave = 0x1D

func (a *app) consoleCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "console REF",
		Short:             "Attach to a VM's serial console; Ctrl-] leaves it",
		Example:           "  banger console web",
		Args:              refs(1),
		ValidArgsFunction: a.completeVMs,
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			s, err := client.Console(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			defer s.Close()
			return a.attach(cmd.Context(), s)
		},
	}
}

var errLeft = errors.New("left the console")

// attach connects the terminal to a console until either ends, or the person leaves. Where
// standard input is no terminal, its end leaves the console open to read.
func (a *app) attach(ctx context.Context, s api.Stream) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(ctx, func() { s.Close() })()
	keys := a.Stdin
	if isTerminal(a.Stdin) {
		a.note("Ctrl-] leaves the console")
		keys = &untilLeave{r: a.Stdin}
	}
	restore, err := a.raw()
	if err != nil {
		return err
	}
	defer restore()
	go func() {
		if _, err := io.Copy(s, keys); errors.Is(err, errLeft) {
			cancel(errLeft)
		}
	}()
	_, err = io.Copy(a.out, s)
	if errors.Is(context.Cause(ctx), errLeft) {
		return nil
	}
	return left(ctx, err)
}

// untilLeave reads keys until the one that leaves.
type untilLeave struct{ r io.Reader }

func (u *untilLeave) Read(p []byte) (int, error) {
	n, err := u.r.Read(p)
	if i := bytes.IndexByte(p[:n], leave); i >= 0 {
		return i, errLeft
	}
	return n, err
}
