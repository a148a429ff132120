package firecracker

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"banger/internal/guest/proto"
	"banger/internal/hypervisor"
	"banger/internal/jail"
)

// script says how the stand-in for Firecracker behaves. It is the text of the program that is
// started, below a line that has it read by this test binary: so it comes along into a jail.
type script struct {
	Version string            // that it gives
	ID      string            // that it gives; empty: the one it was started with
	Answers map[string]answer // by "PUT /path", in the place of an empty success
	Says    string            // on its standard error, at its start
	Exit    int               // as soon as it has said that, unless 0
	DieAt   string            // "PUT /path" at which it dies without an answer
	Silent  bool              // never makes its socket
	Flood   int64             // bytes that its guest prints when it is up
}

// answer is what a request is answered with.
type answer struct {
	Status int
	Body   string
	Cut    bool // hangs up in the middle of it
}

// standInName is what scripts are called.
const standInName = "firecracker-stand-in"

func TestMain(m *testing.M) {
	jail.Main()
	if len(os.Args) > 1 && filepath.Base(os.Args[1]) == standInName {
		standIn(os.Args[1])
		return
	}
	os.Exit(m.Run())
}

// standIn is a program that behaves as Firecracker does as far as its API and its pipes go,
// and runs no machine.
func standIn(path string) {
	var s script
	b, err := os.ReadFile(path)
	if err == nil {
		_, text, _ := bytes.Cut(b, []byte("\n"))
		err = json.Unmarshal(text, &s)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	option := func(name string) string {
		i := slices.Index(os.Args, name)
		return os.Args[i+1]
	}
	if slices.Contains(os.Args, "--version") {
		fmt.Printf("Firecracker v%s\n\n", s.Version)
		return
	}
	fmt.Fprint(os.Stderr, s.Says)
	if s.Exit != 0 {
		os.Exit(s.Exit)
	}
	if s.Silent {
		stop := make(chan os.Signal, 1)
		signal.Notify(stop, unix.SIGTERM)
		<-stop
		return
	}
	if s.ID == "" {
		s.ID = option("--id")
	}
	l, err := net.Listen("unix", option("--api-sock"))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	if flushed, err = unix.Open(option("--metrics-path"), unix.O_WRONLY|unix.O_NONBLOCK, 0); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	http.Serve(l, s)
}

// flushed is where the stand-in writes what it has counted, or drops it where nobody reads.
var flushed int

// ServeHTTP answers as scripted, and keeps a record of what it was told.
func (s script) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	what := r.Method + " " + r.URL.Path
	body, _ := io.ReadAll(r.Body)
	log, err := os.OpenFile("requests", os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err == nil {
		fmt.Fprintf(log, "%s %s\n", what, body)
		log.Close()
	}
	if what == s.DieAt {
		os.Exit(1)
	}
	a, scripted := s.Answers[what]
	switch {
	case scripted && a.Cut:
		conn, _, _ := w.(http.Hijacker).Hijack()
		fmt.Fprintf(conn, "HTTP/1.1 %d x\r\nContent-Length: %d\r\n\r\n%s", a.Status, len(a.Body), a.Body[:len(a.Body)/2])
		conn.Close()
	case scripted:
		w.WriteHeader(a.Status)
		io.WriteString(w, a.Body)
	case what == "GET /":
		json.NewEncoder(w).Encode(map[string]string{"id": s.ID, "state": running, "vmm_version": s.Version, "app_name": "Firecracker"})
	case what == "PUT /snapshot/create":
		var to snapshot
		err := json.Unmarshal(body, &to)
		if err == nil {
			err = errors.Join(os.WriteFile(to.State, []byte("state"), 0o600), os.WriteFile(to.Memory, append(make([]byte, 1<<20), "memory"...), 0o600))
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		w.WriteHeader(http.StatusNoContent)
	case what == "PUT /vsock" || what == "PUT /snapshot/load":
		l, err := net.Listen("unix", vsockSocket)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		guests <- l
		w.WriteHeader(http.StatusNoContent)
	case what == "PUT /actions" && strings.Contains(string(body), "FlushMetrics"):
		unix.Write(flushed, []byte(`{"block":{"read_bytes":5,"write_by`+"\n")) // of which the end was lost
		unix.Write(flushed, []byte(`{"block":{"read_bytes":5,"write_bytes":7,"rate_limiter_throttled_events":2,"execute_fails":1},"net":{"rx_bytes_count":3,"tx_bytes_count":4},"seccomp":{"num_faults":1},"uart":{"write_count":9}}`+"\n"))
		w.WriteHeader(http.StatusNoContent)
	case what == "PUT /actions" && strings.Contains(string(body), "InstanceStart"):
		go runGuest(<-guests, s.Flood)
		fallthrough
	default:
		w.WriteHeader(http.StatusNoContent)
	}
}

// guests holds what the stand-in's guest is connected to by.
var guests = make(chan net.Listener, 1)

// runGuest prints on the console, knocks, and takes connections for the guest, which repeats
// what it hears.
func runGuest(l net.Listener, flood int64) {
	fmt.Println("guest: up")
	go func() {
		row := bytes.Repeat([]byte("flooded\n"), 4<<10)
		for ; flood > 0; flood -= int64(len(row)) {
			os.Stdout.Write(row)
		}
		fmt.Println("guest: dry")
	}()
	if c, err := net.Dial("unix", knockSocket()); err == nil {
		c.Close()
	}
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			hello := fmt.Sprintf("CONNECT %d\n", proto.VsockPort)
			got := make([]byte, len(hello))
			if _, err := io.ReadFull(c, got); err != nil || string(got) != hello {
				return // as Firecracker does where nobody listens
			}
			io.WriteString(c, "OK 1073741824\n")
			io.Copy(c, c)
		}()
	}
}

// named is the Firecracker of that name.
func named(program string) *Hypervisor { return New(func() string { return program }, Options{}) }

// fake makes a Firecracker of a script.
func fake(t *testing.T, s script) *Hypervisor {
	t.Helper()
	if s.Version == "" {
		s.Version = "1.14.1"
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(t.TempDir(), standInName)
	if err := os.WriteFile(program, append([]byte("#!"+self+"\n"), text...), 0o755); err != nil {
		t.Fatal(err)
	}
	return named(program)
}

// goodSpec is a machine that passes every check.
func goodSpec(t *testing.T) hypervisor.MachineSpec {
	t.Helper()
	dir := t.TempDir()
	file := func(name string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte("text"), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	return hypervisor.MachineSpec{
		VMID: "0123456789ab", Dir: filepath.Join(t.TempDir(), "0123456789ab"), Accel: hypervisor.KVM, CPUs: 2, MemoryBytes: 256 << 20,
		Kernel: file(`a "kernel"`), Initramfs: file("initramfs"), Cmdline: []string{"banger.root=/dev/vda"},
		Disks: []hypervisor.Disk{{Path: file("root"), Format: "raw"}, {Path: file("modules"), Format: "raw", ReadOnly: true}},
		NICs:  []hypervisor.NIC{{Mode: hypervisor.NICTAP, MAC: "02:00:00:00:00:01", TAPName: "bgr0123456789ab"}},
	}
}

// launch launches a machine of the fake's; it is gone when the test ends.
func launch(t *testing.T, h *Hypervisor, spec hypervisor.MachineSpec) (hypervisor.Machine, error) {
	t.Helper()
	if err := os.MkdirAll(spec.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	m, err := h.Launch(t.Context(), spec)
	if err == nil {
		t.Cleanup(func() {
			m.Close()
			if err := m.Record().Process.Kill(context.Background()); err != nil {
				t.Error(err)
			}
		})
	}
	return m, err
}

// wantOnlyLogs fails the test if a machine has left more than logs.
func wantOnlyLogs(t *testing.T, dir string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), ".log") && e.Name() != "requests" {
			t.Errorf("%s is left", e.Name())
		}
	}
}
