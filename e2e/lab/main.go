// Command lab runs tests on a host that this one need not be: a VM of banger's own, with
// systemd, device-mapper, vsock, nftables and, by nested virtualization, KVM.
//
//	lab image                build the lab's image, if it is missing
//	lab up                   that, and boot the lab, if it does not run
//	lab test [-keep] [-short] [-long] [NAME…]
//	                         run the suites, or those whose package begins so, in a fresh lab
//	lab bench NAME           take a measurement of e2e/bench in a lab that runs, or is booted and stays
//	lab down                 remove the lab
//
// With -keep a lab that runs is used, and stays. The suites are listed in suites.go.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "lab:", err)
		os.Exit(1)
	}
}

var errUsage = errors.New("usage: lab image | up | test [-keep] [-short] [-long] [NAME…] | bench NAME | down")

func run(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return errUsage
	}
	l, err := newLab()
	if err != nil {
		return err
	}
	switch verb, args := args[0], args[1:]; verb {
	case "image":
		return errors.Join(l.buildImage(ctx), l.stopDaemon())
	case "up":
		if err := l.up(ctx); err != nil {
			return err
		}
		fmt.Printf("the lab runs; work in it with\n  BANGER_STATE_DIR=%s %s exec -t %s -- bash\n", l.state, l.banger, vmName)
		return nil
	case "test":
		var o options
		flags := flag.NewFlagSet("lab test", flag.ContinueOnError)
		flags.BoolVar(&o.keep, "keep", false, "use a lab that runs, and leave it")
		flags.BoolVar(&o.short, "short", false, "run only what takes two minutes")
		flags.BoolVar(&o.long, "long", false, "run the tests too that take many minutes")
		if err := flags.Parse(args); err != nil {
			return err
		}
		o.names = flags.Args()
		return l.test(ctx, o)
	case "bench":
		if len(args) != 1 {
			return errUsage
		}
		return l.bench(ctx, args[0])
	case "down":
		return l.down()
	default:
		return errUsage
	}
}

// options say which tests are run, and in which lab.
type options struct {
	keep, short, long bool
	names             []string
}

// test runs the suites whose package begins with one of the names, all if there are none.
func (l *lab) test(ctx context.Context, o options) (err error) {
	begin := time.Now()
	chosen, err := choose(suites, o)
	if err != nil {
		return err
	}
	if err := l.compile(ctx, chosen); err != nil {
		return err
	}
	if !o.keep {
		if err := l.down(); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, l.down()) }()
	}
	if err := l.up(ctx); err != nil {
		return err
	}
	ready := time.Now()
	if err := l.install(ctx, chosen); err != nil {
		return err
	}
	var r report
	for _, s := range chosen {
		fmt.Printf("=== %s\n", s)
		tests := r.suite(s.String(), os.Stdout)
		l.runSuite(ctx, s, s.pattern(o.long), tests)
		if s.after != "" && tests.failed == 0 && ctx.Err() == nil {
			if err := l.command(ctx, "restart", vmName); err != nil {
				return err
			}
			l.runSuite(ctx, s, s.after, tests)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	fmt.Printf("%sready after %.0f s, tested in %.0f s\n", r.summary(), ready.Sub(begin).Seconds(), time.Since(ready).Seconds())
	if r.failed() {
		return errors.New("not all tests passed")
	}
	return nil
}

// bench takes a measurement in the lab.
func (l *lab) bench(ctx context.Context, name string) error {
	if err := l.compile(ctx, nil); err != nil {
		return err
	}
	if err := l.goTool(ctx, "build", "-o", filepath.Join(l.tests(), benchBinary), "./e2e/bench"); err != nil {
		return err
	}
	if err := l.up(ctx); err != nil {
		return err
	}
	if err := l.install(ctx, nil); err != nil {
		return err
	}
	return l.exec(ctx, os.Stdout, os.Stderr, benchCommand(name))
}

// choose picks the suites whose package, with its tests, begins with one of the names.
func choose(all []suite, o options) ([]suite, error) {
	if o.short {
		all = slices.DeleteFunc(slices.Clone(all), func(s suite) bool { return !s.short })
	}
	if len(o.names) == 0 {
		return all, nil
	}
	var chosen []suite
	used := map[string]bool{}
	for _, s := range all {
		for _, name := range o.names {
			if strings.HasPrefix(s.String(), strings.TrimPrefix(filepath.ToSlash(filepath.Clean(name)), "./")) {
				used[name] = true
				if len(chosen) == 0 || chosen[len(chosen)-1] != s {
					chosen = append(chosen, s)
				}
			}
		}
	}
	for _, name := range o.names {
		if !used[name] {
			return nil, fmt.Errorf("no suite of the lab begins with %q; suites.go lists them", name)
		}
	}
	return chosen, nil
}

// bangerFailed is the exit code of banger exec when not the command failed but banger.
const bangerFailed = 125

// runSuite runs tests of a suite in the lab and tells the report how they ended.
func (l *lab) runSuite(ctx context.Context, s suite, tests string, r *suiteReport) {
	limited, cancel := context.WithTimeout(ctx, s.limit+time.Minute) // the suite's own limit comes first, with a trace
	defer cancel()
	err := l.exec(limited, r, os.Stderr, s.command(tests))
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.ExitCode() == bangerFailed && ctx.Err() == nil {
		l.showConsole()
	}
	if limited.Err() != nil && ctx.Err() == nil {
		err = fmt.Errorf("it did not end within %v", s.limit)
	}
	r.end(err)
}
