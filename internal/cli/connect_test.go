package cli

import (
	"errors"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"banger/api"
	"banger/internal/config"
)

// A person's own daemon goes before the system's, and a place that they name before both.
func TestFindsTheSystemsDaemon(t *testing.T) {
	dir := t.TempDir()
	own, system := filepath.Join(dir, "own.sock"), filepath.Join(dir, "system.sock")
	a := &app{Program: Program{SystemSocket: system}, config: config.Config{Socket: own, StateDir: dir}}
	find := func() (socket string, isSystem bool) {
		t.Helper()
		client, isSystem, err := a.find(t.Context())
		if errors.Is(err, api.ErrNoDaemon) {
			return "", isSystem
		}
		if err != nil {
			t.Fatal(err)
		}
		d, err := client.Daemon(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return d.Socket, isSystem
	}
	if s, isSystem := find(); s != "" || isSystem {
		t.Errorf("without a daemon: %q, %v", s, isSystem)
	}
	theirs, err := serveFake(system, dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(theirs.close)
	if s, isSystem := find(); s != system || !isSystem {
		t.Errorf("with the system's: %q, %v", s, isSystem)
	}
	mine, err := serveFake(own, dir)
	if err != nil {
		t.Fatal(err)
	}
	if s, isSystem := find(); s != own || isSystem {
		t.Errorf("with both: %q, %v", s, isSystem)
	}
	mine.close()
	a.config.Settings = []config.Setting{{Key: config.Keys[1], Value: []string{own}, Origin: "$BANGER_SOCKET"}}
	if s, _ := find(); s != "" {
		t.Errorf("where another socket was named: %q", s)
	}
}

// A daemon of another version says which it is where it does not know a request.
func TestADaemonOfAnotherVersion(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set(api.VersionHeader, "0.9")
		http.NotFound(w, r)
	})}
	go srv.Serve(l)
	t.Cleanup(func() { srv.Close() })
	_, err = api.New(socket).Runtime(t.Context())
	var e *api.Error
	if !errors.As(err, &e) || !strings.Contains(e.Message, "version 0.9, does not know") || !strings.Contains(e.Hint, "banger daemon stop") {
		t.Errorf("got %v", err)
	}
}

// What a daemon is started with is what flags and the environment say here.
func TestConfigEnv(t *testing.T) {
	t.Chdir(t.TempDir())
	wd, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile("c.toml", []byte("bridge = \"b0\""), 0o600); err != nil {
		t.Fatal(err)
	}
	env := map[string]string{"BANGER_CONFIG": "c.toml", "BANGER_RUNTIME_DIR": "rt", "BANGER_STATE_DIR": "/s"}
	c, err := config.Load(func(k string) string { return env[k] }, 0, map[string]string{"subnet": "10.0.0.0/24"})
	if err != nil {
		t.Fatal(err)
	}
	a := &app{Program: Program{Env: []string{"BANGER_CONFIG=c.toml"}}, config: c}
	want := []string{"BANGER_STATE_DIR=/s", "BANGER_SOCKET=/s/bangerd.sock", "BANGER_RUNTIME_DIR=" + filepath.Join(wd, "rt"), "BANGER_SUBNET=10.0.0.0/24", "BANGER_CONFIG=" + filepath.Join(wd, "c.toml")}
	if got := a.configEnv(); strings.Join(got, " ") != strings.Join(want, " ") {
		t.Errorf("got %q, want %q", got, want)
	}
}
