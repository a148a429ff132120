// Package cli is the banger command: it turns arguments into calls of the daemon's API and
// answers into text. It owns flags, exit codes, progress and the terminal. It starts a
// daemon when none runs, and knows nothing of how a VM is made: whatever must hold for
// every client of the API is checked in the daemon.
package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"banger/internal/config"
)

// Exit codes other than those of a guest's command.
const (
	exitFailure = 1
	exitUsage   = 2
	exitBanger  = 125 // run, exec, ssh: banger itself failed, not the guest's command
	exitSignal  = 128 // and the signal's number
)

// Program is one run of the banger command.
type Program struct {
	Args    []string // without the program's name
	Stdin   io.Reader
	Stdout  io.Writer // data
	Stderr  io.Writer // progress and messages
	Env     []string  // K=V; also the environment of a daemon or ssh that it starts
	Version string
	// SystemSocket is where the system's daemon listens; empty: where systemd has it.
	SystemSocket string
	Commit       string // of the source, or empty
	Date         string // of that commit, RFC 3339, or empty
}

// app is a Program under way.
type app struct {
	Program
	out     *output       // standard output
	config  config.Config // set before any command runs, except by those that need none
	started bool          // whether the arguments were good and a command began
	failure int           // exit code for a failure of banger's
}

// Run runs the command and returns its exit code.
func (p Program) Run(ctx context.Context) int {
	ctx, stop := interruptible(ctx)
	defer stop()
	a := &app{Program: p, out: &output{w: p.Stdout}, failure: exitFailure}
	root := a.root()
	root.SetArgs(p.Args)
	root.SetIn(p.Stdin)
	root.SetOut(a.out)
	root.SetErr(p.Stderr)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		err = a.out.err
	}
	return a.exit(ctx, cmd, err)
}

// output is standard output. It keeps its first error, so that a full disk behind it
// fails the command whatever wrote to it.
type output struct {
	w   io.Writer
	err error
}

func (o *output) Write(p []byte) (int, error) {
	if o.err != nil {
		return 0, o.err
	}
	n, err := o.w.Write(p)
	o.err = err
	return n, err
}

func (a *app) print(format string, args ...any) { fmt.Fprintf(a.out, format, args...) }

// note writes one line for people to standard error.
func (a *app) note(format string, args ...any) {
	fmt.Fprintf(a.Stderr, "banger: "+format+"\n", args...)
}

// getenv is os.Getenv on the program's own environment.
func (a *app) getenv(key string) string {
	v, _ := a.lookupEnv(key)
	return v
}

func (a *app) lookupEnv(key string) (string, bool) {
	for i := len(a.Env) - 1; i >= 0; i-- {
		if k, v, ok := strings.Cut(a.Env[i], "="); ok && k == key {
			return v, true
		}
	}
	return "", false
}

// noConfig marks commands that work even where the config file is bad.
const noConfig = "no-config"

// guestsCode marks commands whose exit code is the guest's command's, unless banger itself fails.
var guestsCode = map[string]string{"guests-code": ""}

// Groups of commands in the help.
const (
	groupVM     = "vm"
	groupAssets = "assets"
	groupHost   = "host"
)

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:               "banger",
		Short:             "Sandboxes that are real virtual machines",
		Example:           "  banger run -- make test",
		SilenceErrors:     true,
		SilenceUsage:      true,
		Version:           a.Version,
		PersistentPreRunE: a.begin,
	}
	root.SetFlagErrorFunc(flagError)
	configFlags(root)
	root.AddGroup(&cobra.Group{ID: groupVM, Title: "Virtual machines:"},
		&cobra.Group{ID: groupAssets, Title: "What they are made of:"},
		&cobra.Group{ID: groupHost, Title: "The host:"})
	group(root)
	for _, c := range a.vmCommands() {
		c.GroupID = groupVM
		root.AddCommand(c)
	}
	vm := &cobra.Command{Use: "vm", Short: "The same verbs, by their noun", GroupID: groupVM, Example: "  banger vm ls"}
	group(vm)
	vm.AddCommand(a.vmCommands()...)
	root.AddCommand(vm)
	for _, c := range []*cobra.Command{a.imageCommand(), a.kernelCommand(), a.templateCommand(), a.poolCommand(), a.runtimeCommand(), a.diskCommand()} {
		c.GroupID = groupAssets
		root.AddCommand(c)
	}
	for _, c := range []*cobra.Command{a.configCommand(), a.daemonCommand(), a.doctorCommand(), a.eventsCommand(), a.networkCommand(), a.dnsCommand(), a.systemCommand(), a.sshConfigCommand(), a.versionCommand()} {
		c.GroupID = groupHost
		root.AddCommand(c)
	}
	root.AddCommand(a.sshProxyCommand(), a.sshKnownHostsCommand())
	root.SetHelpCommandGroupID(groupHost)
	root.SetCompletionCommandGroupID(groupHost)
	builtins(root)
	help := root.HelpFunc()
	root.SetHelpFunc(func(cmd *cobra.Command, args []string) {
		var text bytes.Buffer
		cmd.SetOut(&text)
		help(cmd, args)
		cmd.SetOut(a.out)
		a.print("%s", strings.ReplaceAll(text.String(), "[=true|false]", "")) // says nothing to a person
	})
	return root
}

// begin is called when the arguments have been found good, before the command.
func (a *app) begin(cmd *cobra.Command, _ []string) (err error) {
	var empty *pflag.Flag
	cmd.Flags().Visit(func(f *pflag.Flag) {
		if f.Value.Type() == "string" && f.Value.String() == "" && f != cmd.Root().PersistentFlags().Lookup(f.Name) {
			empty = f
		}
	})
	if empty != nil { // left out it would be the default, which was not asked for
		return badUsage("--%s needs a value that is not empty", empty.Name)
	}
	a.started = true
	if _, ok := cmd.Annotations["guests-code"]; ok {
		a.failure = exitBanger
	}
	if _, ok := cmd.Annotations[noConfig]; !ok {
		a.config, err = config.Load(a.getenv, os.Geteuid(), configFlagsSet(cmd.Root()))
	}
	return err
}

func (a *app) vmCommands() []*cobra.Command {
	return []*cobra.Command{
		a.runCommand(), a.createCommand(), a.startCommand(), a.stopCommand(), a.restartCommand(), a.killCommand(), a.pauseCommand(), a.suspendCommand(), a.resumeCommand(), a.rmCommand(), a.snapshotCommand(), a.forkCommand(),
		a.lsCommand(), a.inspectCommand(), a.execCommand(), a.sshCommand(), a.cpCommand(), a.commitCommand(), a.portCommand(),
		a.logsCommand(), a.consoleCommand(), a.statsCommand(), a.pruneCommand(),
	}
}

// group makes cmd a noun: alone it shows its help, with an unknown verb it names near ones.
func group(cmd *cobra.Command) {
	cmd.SuggestionsMinimumDistance = 2
	cmd.Annotations = map[string]string{noConfig: ""}
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return nil
		}
		near := cmd.SuggestionsFor(args[0])
		slices.Sort(near)
		if len(near) == 0 {
			return fmt.Errorf("there is no command %q", args[0])
		}
		return fmt.Errorf("there is no command %q; did you mean %s?", args[0], strings.Join(near, " or "))
	}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
}

// exitCode ends the program with a code and no message.
type exitCode int

func (e exitCode) Error() string { return fmt.Sprintf("exit %d", int(e)) }

// exit tells the person what went wrong and picks the exit code.
func (a *app) exit(ctx context.Context, cmd *cobra.Command, err error) int {
	var code exitCode
	var bad *usageError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &code):
		return int(code)
	case brokenPipe(err):
		return exitSignal + sigPipe
	case !a.started || errors.As(err, &bad):
		a.note("%s", shownLines(err.Error()))
		fmt.Fprintf(a.Stderr, "  see %s --help\n", cmd.CommandPath())
		return exitUsage
	}
	if s, ok := interruption(ctx); ok {
		a.note("%s", s)
		return exitSignal + int(s)
	}
	a.report(err)
	return a.failure
}
