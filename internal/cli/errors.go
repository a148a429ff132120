package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"banger/api"
	"banger/internal/errs"
)

// usageError is a command line that can't be understood, found after its flags were parsed.
type usageError struct{ message string }

func (e *usageError) Error() string { return e.message }

func badUsage(format string, args ...any) error {
	return &usageError{fmt.Sprintf(format, args...)}
}

const (
	sigInt  = syscall.SIGINT
	sigPipe = int(syscall.SIGPIPE)
)

// brokenPipe tells whether err comes from writing to a file whose reader went away, as
// standard output's does in `banger ls | head -1`.
func brokenPipe(err error) bool {
	path, ok := errors.AsType[*fs.PathError](err)
	return ok && path.Op == "write" && errors.Is(path.Err, syscall.EPIPE)
}

// report writes err for a person: what failed and why, then what to do next.
func (a *app) report(err error) {
	a.note("%s", shownLines(strings.TrimSpace(err.Error())))
	if hint := hintOf(err); hint != "" {
		fmt.Fprintf(a.Stderr, "  %s\n", shownLines(hint))
	}
}

func hintOf(err error) string {
	if hint := errs.HintOf(err); hint != "" { // who knows what was wanted knows better than the daemon
		return hint
	}
	if e, ok := errors.AsType[*api.Error](err); ok {
		return e.Hint
	}
	if errors.Is(err, api.ErrGone) {
		return "try again; its log, `banger daemon logs`, may say why"
	}
	return ""
}

// notFound tells whether the daemon knows no such thing.
func notFound(err error) bool { return hasCode(err, errs.NotFound) }

func hasCode(err error, kind errs.Kind) bool {
	e, ok := errors.AsType[*api.Error](err)
	return ok && e.Code == string(kind)
}

// flagError turns the flag parser's errors into sentences.
func flagError(_ *cobra.Command, err error) error {
	if e, ok := errors.AsType[*pflag.InvalidValueError](err); ok {
		return fmt.Errorf("--%s %q: %s", e.GetFlag().Name, e.GetValue(), e.Unwrap())
	}
	if e, ok := errors.AsType[*pflag.ValueRequiredError](err); ok {
		return fmt.Errorf("--%s needs a value", e.GetFlag().Name)
	}
	if e, ok := errors.AsType[*pflag.NotExistError](err); ok {
		dashes := "--"
		if e.GetSpecifiedShortnames() != "" {
			dashes = "-"
		}
		return fmt.Errorf("there is no flag %s", dashes+e.GetSpecifiedName())
	}
	return err
}

// args checks how many arguments there are; what names them in the error.
func args(least, most int, what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) < least:
			return fmt.Errorf("%s needs %s", cmd.Name(), what)
		case most >= 0 && len(args) > most && most == 0:
			return fmt.Errorf("%s takes no arguments, not %q", cmd.Name(), args[0])
		case most >= 0 && len(args) > most:
			return fmt.Errorf("%s takes %s, and %q is one argument too many", cmd.Name(), what, args[most])
		}
		return nil
	}
}

// refs checks references of VMs: one or more, at most most unless that is negative, none empty.
func refs(most int) cobra.PositionalArgs {
	what := "a VM"
	if most == 1 {
		what = "one VM"
	}
	return func(cmd *cobra.Command, list []string) error {
		if err := args(1, most, what)(cmd, list); err != nil {
			return err
		}
		return named(list)
	}
}

// refThen checks a reference that is followed by anything.
func refThen(cmd *cobra.Command, list []string) error {
	if err := args(1, -1, "a VM")(cmd, list); err != nil {
		return err
	}
	return named(list[:1])
}

func named(list []string) error {
	for _, ref := range list {
		if ref == "" {
			return errors.New("an empty name names nothing")
		}
	}
	return nil
}
