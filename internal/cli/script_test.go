package cli

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"banger/api"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"banger": func() {
			os.Exit(Program{Args: os.Args[1:], Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
				Env: os.Environ(), Version: "1.2.3"}.Run(context.Background()))
		},
		"bangerd": fakeDaemon,
		"ssh": func() { // shows what it was called with
			fmt.Printf("%q\n", os.Args)
			os.Exit(7)
		},
	})
}

// fakeDaemon is bangerd as far as its start and end go. FAKE_DAEMON makes it fail.
func fakeDaemon() {
	ready := os.NewFile(3, "ready")
	switch os.Getenv("FAKE_DAEMON") {
	case "refuses":
		fmt.Fprint(ready, "error: the database is newer than this program\nhint: install a newer banger\n")
		os.Exit(1)
	case "dies":
		fmt.Fprintln(os.Stderr, "panic: out of cheese")
		os.Exit(2)
	}
	os.Remove(os.Getenv("BANGER_SOCKET"))
	f, err := serveFake(os.Getenv("BANGER_SOCKET"), os.Getenv("BANGER_STATE_DIR"))
	if err != nil {
		fmt.Fprintf(ready, "error: %s\n", err)
		os.Exit(1)
	}
	fmt.Fprintln(os.Stderr, "serving, one of one")
	fmt.Fprint(ready, "ready\n")
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	select {
	case <-stop:
	case <-f.done:
	}
	f.server.Shutdown(context.Background())
}

type fakeKey struct{}

func TestScripts(t *testing.T) {
	testscript.Run(t, scriptParams("testdata/script"))
}

// scriptParams are those of the scripts in dir, each of which has a banger of its own.
func scriptParams(dir string) testscript.Params {
	return testscript.Params{
		Dir:                 dir,
		RequireExplicitExec: true,
		Setup: func(env *testscript.Env) error {
			state := filepath.Join(env.WorkDir, "state")
			if err := os.Mkdir(state, 0o700); err != nil {
				return err
			}
			env.Setenv("BANGER_STATE_DIR", state)
			env.Setenv("BANGER_SOCKET", filepath.Join(state, "s"))
			env.Setenv("HOME", env.WorkDir)
			env.Values[fakeKey{}] = new(*fake)
			env.Setenv("XDG_CONFIG_HOME", filepath.Join(env.WorkDir, "config"))
			// Whatever daemon the script left, started by itself or by banger.
			env.Defer(func() { api.New(filepath.Join(state, "s")).StopDaemon(context.Background()) })
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"daemon":  startFake,
			"dying":   hangUp,
			"code":    exitsWith,
			"journal": journalHas,
			"vm":      alterVM,
		},
	}
}

// startFake is the script command `daemon`: a fake daemon serves from now on.
func startFake(ts *testscript.TestScript, _ bool, _ []string) {
	f, err := serveFake(ts.Getenv("BANGER_SOCKET"), ts.Getenv("BANGER_STATE_DIR"))
	ts.Check(err)
	ts.Defer(f.close)
	*ts.Value(fakeKey{}).(**fake) = f
}

// hangUp is the script command `dying`: what is left of a daemon that was killed takes one more
// connection, without an answer, and leaves its socket.
func hangUp(ts *testscript.TestScript, _ bool, _ []string) {
	l, err := net.Listen("unix", ts.Getenv("BANGER_SOCKET"))
	ts.Check(err)
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	go func() {
		conn, err := l.Accept()
		l.Close()
		if err == nil {
			conn.Close()
		}
	}()
	ts.Defer(func() { l.Close() })
}

// exitsWith is the script command `code N CMD…`.
func exitsWith(ts *testscript.TestScript, _ bool, args []string) {
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec(args[1], args[2:]...)
	got := 0
	if e, ok := errors.AsType[*exec.ExitError](err); ok {
		got = e.ExitCode()
	} else {
		ts.Check(err)
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

// journalHas is the script command `journal TEXT`: the fake daemon was asked for that.
func journalHas(ts *testscript.TestScript, neg bool, args []string) {
	journal := (*ts.Value(fakeKey{}).(**fake)).text()
	if strings.Contains(journal, args[0]) == neg {
		ts.Fatalf("journal:\n%s", journal)
	}
}

// alterVM is the script command `vm NAME FIELD VALUE`, with Go escapes in VALUE.
func alterVM(ts *testscript.TestScript, _ bool, args []string) {
	f := *ts.Value(fakeKey{}).(**fake)
	f.mu.Lock()
	defer f.mu.Unlock()
	vm, aerr := f.find(args[0])
	if aerr != nil {
		ts.Fatalf("%s", aerr.Message)
	}
	value, err := strconv.Unquote(`"` + args[2] + `"`)
	ts.Check(err)
	switch args[1] {
	case "name":
		vm.Name = value
	case "error":
		vm.Error, vm.State = value, "failed"
	case "image":
		vm.Image = value
	}
}
