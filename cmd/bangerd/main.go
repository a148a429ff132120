// Command bangerd is banger's daemon. The banger command starts it when none runs.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"

	sd "github.com/coreos/go-systemd/v22/daemon"

	"banger/internal/config"
	"banger/internal/daemon"
	"banger/internal/errs"
	"banger/internal/jail"
)

// Set by the linker.
var (
	version  = "dev"
	commit   = "" // of the source
	date     = "" // of that commit
	checkout = "" // root of the checkout that this was built in
)

func main() {
	jail.Main()
	readyFD := flag.Int("ready-fd", -1, "write `ready` to this descriptor once the socket serves")
	flags := map[string]string{}
	for _, k := range config.Keys {
		flag.Func(k.Flag(), k.Doc, func(v string) error { flags[k.Name] = v; return nil })
	}
	showVersion := flag.Bool("version", false, "show the version")
	flag.Parse()
	if *showVersion {
		fmt.Print("bangerd ", version)
		if commit != "" {
			fmt.Printf(" (%s, %s)", commit[:min(12, len(commit))], date) // as banger version does
		}
		fmt.Println()
		return
	}
	ready := io.WriteCloser(os.Stderr)
	if *readyFD >= 0 {
		syscall.CloseOnExec(*readyFD) // a machine started during recovery must not hold it
		ready = os.NewFile(uintptr(*readyFD), "ready")
	}
	if err := run(ready, flags); err != nil {
		report := "error: " + strings.ReplaceAll(err.Error(), "\n", " ") + "\n"
		if hint := errs.HintOf(err); hint != "" {
			report += "hint: " + hint + "\n"
		}
		io.WriteString(ready, report)
		if *readyFD >= 0 {
			fmt.Fprint(os.Stderr, "bangerd: ", report)
		}
		os.Exit(1)
	}
}

func run(ready io.WriteCloser, flags map[string]string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	// A terminal's hang-up and its Ctrl-C are for the command that started us.
	signal.Ignore(syscall.SIGHUP, syscall.SIGPIPE)
	cfg, err := config.Load(os.Getenv, os.Geteuid(), flags)
	if err != nil {
		return err
	}
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	d, err := daemon.Open(ctx, daemon.Options{
		Config: cfg, Executable: exe, Checkout: checkout, Version: version,
		Log: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	})
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Serve(ctx, func() {
		said := ""
		for _, note := range d.Notes() {
			said += "note: " + strings.ReplaceAll(note, "\n", " ") + "\n"
		}
		io.WriteString(ready, said+"ready\n")
		if ready != os.Stderr {
			ready.Close()
		}
		// Where systemd has started us it waits for that. An error is of a host without it.
		_, _ = sd.SdNotify(true, sd.SdNotifyReady)
	})
}
