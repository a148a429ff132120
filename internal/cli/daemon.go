package cli

import (
	"context"
	"errors"
	"io"
	"os"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"banger/api"
	"banger/internal/errs"
)

func (a *app) daemonCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "daemon",
		Short:   "Look after the daemon, which starts by itself when needed",
		Example: "  banger daemon status",
	}
	group(cmd)
	cmd.AddCommand(a.daemonStatusCommand(), a.daemonStartCommand(), a.daemonStopCommand(), a.daemonLogsCommand())
	return cmd
}

// daemonStatus is what daemon status --json prints.
type daemonStatus struct {
	Running bool        `json:"running"`
	System  bool        `json:"system"` // it is the system's, not the person's own
	Daemon  *api.Daemon `json:"daemon"` // null if none runs
}

func (a *app) daemonStatusCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "status",
		Short:   "Tell whether a daemon runs; the exit code is 1 if none does",
		Example: "  banger daemon status --json",
		Args:    args(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, system, err := a.find(cmd.Context())
			if err != nil && !errors.Is(err, api.ErrNoDaemon) {
				return err
			}
			d, err := a.runningDaemon(cmd.Context())
			if err != nil {
				return err
			}
			whose := "your own"
			if system {
				whose = "the system's, since none of your own runs"
			}
			switch {
			case asJSON:
				err = a.json(daemonStatus{d != nil, system, d})
			case d == nil:
				a.print("no daemon runs on %s\n", shown(a.config.Socket))
			default:
				rows := [][]string{
					{"running", "pid " + strconv.Itoa(d.PID) + ", up " + duration(time.Since(d.StartedAt))},
					{"daemon", whose}, {"version", d.Version}, {"socket", d.Socket}, {"state", d.StateDir}, {"log", a.daemonLog()},
					{"VMs", strconv.Itoa(d.VMs) + ", " + strconv.Itoa(d.Running) + " running"},
				}
				for _, note := range d.Notes {
					rows = append(rows, []string{"note", note})
				}
				err = a.table(rows)
			}
			if err == nil && d == nil {
				return exitCode(exitFailure)
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "as JSON")
	return cmd
}

func (a *app) daemonStartCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "start",
		Short:   "Start the daemon, if none runs",
		Example: "  banger daemon start",
		Args:    args(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := a.connect(cmd.Context())
			return err
		},
	}
}

func (a *app) daemonStopCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "stop",
		Short:   "Stop the daemon; VMs run on",
		Example: "  banger daemon stop",
		Args:    args(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			d, err := a.runningDaemon(cmd.Context())
			if err != nil {
				return err
			}
			if d == nil {
				a.note("no daemon runs")
				return nil
			}
			ended, err := watchProcess(d.PID)
			if err != nil {
				return err
			}
			if err := api.New(d.Socket).StopDaemon(cmd.Context()); err != nil {
				return err
			}
			if err := ended(cmd.Context()); err != nil {
				return err
			}
			if d.Running > 0 {
				a.note("VMs that run on: %d. Names, DNS for VMs and forwarded ports come back with the next daemon", d.Running)
			}
			return nil
		},
	}
}

// watchProcess returns a function that waits for the end of a process, of whose id no
// other can have taken possession meanwhile.
func watchProcess(pid int) (wait func(context.Context) error, err error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return func(context.Context) error { return nil }, nil
	}
	if err != nil {
		return nil, errs.New(errs.Unavailable, "watch the daemon, process %d", pid).Because(err)
	}
	return func(ctx context.Context) error {
		defer unix.Close(fd)
		ended := make(chan error, 1)
		go func() {
			for {
				if _, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, -1); err != unix.EINTR {
					ended <- err
					return
				}
			}
		}()
		select {
		case err := <-ended:
			return err
		case <-ctx.Done():
			return ctx.Err()
		}
	}, nil
}

func (a *app) daemonLogsCommand() *cobra.Command {
	var follow bool
	cmd := &cobra.Command{
		Use:     "logs",
		Short:   "Show the daemon's log",
		Example: "  banger daemon logs -f",
		Args:    args(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			log, err := os.Open(a.daemonLog())
			if errors.Is(err, os.ErrNotExist) {
				return errs.New(errs.NotFound, "there is no log %s", a.daemonLog()).
					Try("no daemon has been started by banger; one started otherwise logs elsewhere")
			}
			if err != nil {
				return errs.New(errs.Unavailable, "read the daemon's log").Because(err)
			}
			defer log.Close()
			var w io.Writer = a.out
			if isTerminal(a.Stdout) {
				w = &calm{w: w}
			}
			if !follow {
				_, err = io.Copy(w, log)
				return err
			}
			return left(cmd.Context(), followFile(cmd.Context(), w, log))
		},
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on as more comes")
	return cmd
}

// followFile copies a file and what is appended to it, until ctx ends.
func followFile(ctx context.Context, w io.Writer, f *os.File) error {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return err
	}
	changes := os.NewFile(uintptr(fd), "inotify")
	defer changes.Close()
	defer context.AfterFunc(ctx, func() { changes.Close() })()
	if _, err := unix.InotifyAddWatch(fd, f.Name(), unix.IN_MODIFY); err != nil {
		return err
	}
	events := make([]byte, 4096)
	for {
		if _, err := io.Copy(w, f); err != nil {
			return err
		}
		if _, err := changes.Read(events); err != nil {
			return err
		}
	}
}
