package cli

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"banger/api"
	"banger/internal/errs"
)

const keepResidueUsage = "leave what belongs to the machine: machine-id, host keys, leases, logs, shell history"

func (a *app) commitCommand() *cobra.Command {
	var req api.CommitVM
	cmd := &cobra.Command{
		Use:   "commit REF NAME",
		Short: "Keep the disk of a stopped VM as an image",
		Long: `Keep the disk of a stopped VM as an image. What belongs to that machine is left out: its
machine-id, host keys, leases, logs and shell history.`,
		Example: "  banger commit web web:tested",
		Args:    args(2, 2, "a VM and a name for the image"),
		RunE: func(cmd *cobra.Command, given []string) error {
			client, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			req.Name = given[1]
			return a.commit(cmd.Context(), client, given[0], req)
		},
	}
	cmd.Flags().BoolVar(&req.Stop, "stop", false, "stop it first if it runs")
	cmd.Flags().BoolVar(&req.KeepResidue, "keep-residue", false, keepResidueUsage)
	return cmd
}

// commit makes an image of a VM and prints its name.
func (a *app) commit(ctx context.Context, client *api.Client, ref string, req api.CommitVM) error {
	p := a.bars()
	err := client.CommitVM(ctx, ref, req, p.event)
	p.close()
	if err == nil {
		a.print("%s\n", shown(req.Name))
	}
	return err
}

// customize is what was asked for.
type customize struct {
	vm          api.CreateVM
	script      string // path, or "-"
	interactive bool
	keep        bool
	commit      api.CommitVM
}

func (a *app) customizeCommand() *cobra.Command {
	var c customize
	cmd := &cobra.Command{
		Use:   "customize BASE NAME (--script FILE | --interactive)",
		Short: "Make an image of another by a script, or by hand, in a VM",
		Long: `Start a VM on the image BASE, run a script in it as root or give a shell, and keep its disk as
the image NAME. A script that begins with #! is run by what it names, others by /bin/sh; what it says
goes to standard error. When it fails, or the shell ends with another status than 0, no image is made.
What was done by hand is not lost: if no image can be made of it, the VM stays. BASE is never changed.`,
		Example: "  banger image customize debian web --script setup.sh\n  banger image customize debian web --interactive",
		Args:    args(2, 2, "an image and a name for the new one"),
		RunE: func(cmd *cobra.Command, given []string) error {
			if (c.script == "") == !c.interactive {
				return badUsage("give either --script or --interactive")
			}
			client, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			c.vm.Image, c.commit.Name = given[0], given[1]
			return a.customize(cmd.Context(), client, c)
		},
	}
	f := cmd.Flags()
	f.StringVar(&c.script, "script", "", "run this file of the host's; - is standard input")
	f.BoolVarP(&c.interactive, "interactive", "i", false, "give a shell; exit 0 keeps what was done")
	f.BoolVar(&c.keep, "keep", false, "leave the VM to look at if its script fails")
	f.BoolVar(&c.commit.KeepResidue, "keep-residue", false, keepResidueUsage)
	f.Var(size{&c.vm.MemoryBytes}, "memory", "memory of the VM")
	f.Var(size{&c.vm.DiskBytes}, "disk", "size of the new image; the base's if not given")
	return cmd
}

// customize makes a VM, changes it, keeps its disk and removes it. Whatever ends this process
// ends the VM, unless it is to be kept or has what a person did by hand.
func (a *app) customize(ctx context.Context, client *api.Client, c customize) (err error) {
	var script []byte
	if !c.interactive {
		if script, err = a.readScript(c.script); err != nil {
			return err
		}
		sum := sha256.Sum256(script)
		c.commit.Script = hex.EncodeToString(sum[:])
	}
	// Before minutes of work for nothing: may an image be called so?
	if _, err := client.Image(ctx, c.commit.Name); hasCode(err, errs.Invalid) {
		return err
	}
	if !c.keep && !c.interactive {
		id, lease, err := client.Lease(context.WithoutCancel(ctx))
		if err != nil {
			return err
		}
		defer lease.Close()
		c.vm.Lease = id
	}
	c.vm.Start = true
	vm, err := a.boot(ctx, client, c.vm)
	if err != nil {
		return err
	}
	if c.interactive {
		return a.byHand(ctx, client, vm, c)
	}
	work, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	go halts(work, client, vm, func(why string) {
		stop(errs.New(errs.Unavailable, "the script can't go on: %s", shown(why)).Try("make room for the state directory: banger disk usage"))
	})
	err = a.runScript(work, client, vm, script)
	if err == nil {
		err = a.keepDisk(work, client, vm, c.commit)
	}
	hint := fmt.Sprintf("look at it: banger exec %s; then: banger rm -f %s", vm.Name, vm.Name)
	if halted, ok := errors.AsType[*errs.Error](context.Cause(work)); ok && err != nil {
		err, hint = halted, fmt.Sprintf("make room, then: banger resume %s; ", vm.Name)+hint
	}
	if err != nil && c.keep {
		return a.left(ctx, vm, err, hint)
	}
	return errors.Join(err, discard(ctx, client, vm))
}

// byHand gives a person a shell in the VM, and keeps its disk when that ends with status 0.
// Whatever else goes wrong than that shell, the VM stays.
func (a *app) byHand(ctx context.Context, client *api.Client, vm api.VM, c customize) error {
	watch, stop := context.WithCancel(ctx)
	defer stop()
	go halts(watch, client, vm, func(why string) {
		a.note("%s\r", shown(fmt.Sprintf("%s stands still until there is room, and then goes on by: banger resume %s (%s)", vm.Name, vm.Name, why)))
	})
	err := a.exec(ctx, client, vm.ID, api.Exec{TTY: isTerminal(a.Stdin) && isTerminal(a.Stdout)})
	if code, ended := errors.AsType[exitCode](err); ended && ctx.Err() == nil {
		return errors.Join(errs.New(errs.Conflict, "the shell ended with status %d, so no image is made", int(code)), discard(ctx, client, vm))
	}
	hint := fmt.Sprintf("keep its disk: banger commit --stop %s %s; then: banger rm -f %s", vm.Name, c.commit.Name, vm.Name)
	if err != nil {
		return a.left(ctx, vm, err, fmt.Sprintf("go on with it: banger exec %s; or ", vm.Name)+hint)
	}
	if err := a.keepDisk(ctx, client, vm, c.commit); err != nil {
		return a.left(ctx, vm, err, hint)
	}
	return discard(ctx, client, vm)
}

// halts calls do when the VM stands still because the host has no room for what it writes.
func halts(ctx context.Context, client *api.Client, vm api.VM, do func(why string)) {
	// It fails as the work itself will.
	_ = client.Events(ctx, 0, true, func(t api.Transition) bool {
		if t.VM == vm.ID && t.To == api.StatePaused && t.Reason != "" { // otherwise someone has paused it
			why, _, _ := strings.Cut(t.Reason, "; ") // what follows is what to do with a VM that stays
			do(why)
		}
		return true
	})
}

// left tells that the VM stays, why, and what to do with it.
func (a *app) left(ctx context.Context, vm api.VM, why error, hint string) error {
	if s, ok := interruption(ctx); ok {
		why = s
	}
	err := errs.New(errs.Conflict, "VM %s is left", shown(vm.Name)).Because(why).Try("%s", hint)
	if ctx.Err() != nil {
		a.report(err) // at its end there is told no more than that
	}
	return err
}

// discard removes a VM that has served.
func discard(ctx context.Context, client *api.Client, vm api.VM) error {
	if _, err := client.RemoveVM(context.WithoutCancel(ctx), vm.ID, true, nil); err != nil && !notFound(err) {
		return err
	}
	return nil
}

// keepDisk stops the VM and commits it.
func (a *app) keepDisk(ctx context.Context, client *api.Client, vm api.VM, req api.CommitVM) error {
	if _, err := client.Trim(ctx, vm.ID); err != nil && ctx.Err() == nil { // the image takes more room than it need
		a.note("warning: can't trim the disk first: %v", err)
	}
	req.Stop = true
	return a.commit(ctx, client, vm.ID, req)
}

func (a *app) readScript(path string) ([]byte, error) {
	if path == "-" {
		return io.ReadAll(a.Stdin)
	}
	script, err := os.ReadFile(path)
	if err != nil {
		return nil, errs.New(errs.Invalid, "can't read the script").Because(err)
	}
	return script, nil
}

// guestScript is where a script lies in the guest while it runs: in memory, so that the
// image does not have it.
const guestScript = "/run/banger-customize"

// runScript runs a script in the VM; what it writes goes to standard error.
func (a *app) runScript(ctx context.Context, client *api.Client, vm api.VM, script []byte) error {
	dir, err := os.MkdirTemp("", "banger-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	file := filepath.Join(dir, "script")
	if err := os.WriteFile(file, script, 0o700); err != nil {
		return err
	}
	if err := client.Put(ctx, vm.ID, file, guestScript, nil); err != nil {
		return err
	}
	x := api.Exec{Argv: []string{guestScript}}
	if len(script) < 2 || string(script[:2]) != "#!" {
		x.Argv = []string{"/bin/sh", guestScript}
	}
	exit, err := client.Exec(ctx, vm.ID, x, api.ExecIO{Stdout: a.Stderr, Stderr: a.Stderr})
	switch {
	case err != nil:
		return err
	case exit.Message != "":
		return errs.New(errs.Invalid, "the script can't be run: %s", shown(exit.Message))
	case exit.Code != 0:
		return errs.New(errs.Invalid, "the script ended with status %d; no image is made", exit.Code)
	}
	return nil
}
