package firecracker

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/errs"
	"banger/internal/host"
	"banger/internal/hypervisor"
	"banger/internal/jail"
)

// A machine is told what its spec says, in an order that Firecracker takes.
func TestLaunchTellsAll(t *testing.T) {
	spec := goodSpec(t)
	if _, err := launch(t, fake(t, script{}), spec); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(filepath.Join(spec.Dir, "requests"))
	if err != nil {
		t.Fatal(err)
	}
	want := `GET / 
PUT /machine-config {"vcpu_count":2,"mem_size_mib":256}
PUT /cpu-config {"cpuid_modifiers":[{"leaf":"0x1","subleaf":"0x0","flags":0,"modifiers":[{"register":"ecx","bitmap":"0bxxxxxxxxxxxxxxxxxxxxxxxxxx0xxxxx"}]},{"leaf":"0x80000001","subleaf":"0x0","flags":0,"modifiers":[{"register":"ecx","bitmap":"0bxxxxxxxxxxxxxxxxxxxxxxxxxxxxx0xx"}]}]}
PUT /boot-source {"kernel_image_path":"DIR/a \"kernel\"","initrd_path":"DIR/initramfs","boot_args":"console=ttyS0 8250.nr_uarts=1 quiet panic=-1 reboot=k i8042.noaux i8042.nomux i8042.dumbkbd pci=off banger.poweroff=restart cryptomgr.notests banger.root=/dev/vda"}
PUT /drives/disk0 {"drive_id":"disk0","path_on_host":"run/disk0","is_read_only":false,"is_root_device":false,"cache_type":"Writeback"}
PUT /drives/disk1 {"drive_id":"disk1","path_on_host":"run/disk1","is_read_only":true,"is_root_device":false,"cache_type":"Writeback"}
PUT /network-interfaces/net0 {"iface_id":"net0","host_dev_name":"bgr0123456789ab","guest_mac":"02:00:00:00:00:01"}
PUT /vsock {"guest_cid":3,"uds_path":"run/vsock.sock"}
PUT /entropy {}
PUT /balloon {"amount_mib":0,"deflate_on_oom":true,"stats_polling_interval_s":5,"free_page_reporting":true}
PUT /actions {"action_type":"InstanceStart"}
`
	if want = strings.ReplaceAll(want, "DIR", filepath.Dir(spec.Kernel)); string(got) != want {
		t.Errorf("it was told\n%s\nnot\n%s", got, want)
	}
}

// At each step of a launch Firecracker refuses, dies, or answers with nonsense: nothing is
// left, and its words reach the user with nothing in them that steers a terminal.
func TestLaunchFailsAtEachStep(t *testing.T) {
	if testing.Short() {
		t.Skip("SKIP: short")
	}
	steps := []string{"GET /", "PUT /machine-config", "PUT /cpu-config", "PUT /boot-source", "PUT /drives/disk1", "PUT /network-interfaces/net0", "PUT /vsock", "PUT /entropy", "PUT /balloon", "PUT /actions"}
	for _, step := range steps {
		t.Run(strings.ReplaceAll(step, "/", "_"), func(t *testing.T) {
			t.Parallel()
			const fault = "The kernel file cannot be opened: \x1b[31mNo such file or directory (os error 2)"
			body := fmt.Sprintf(`{"fault_message":%q}`, fault)
			body = strings.ReplaceAll(body, `\x1b`, `\u001b`)
			for name, s := range map[string]script{
				"refused":     {Answers: map[string]answer{step: {Status: http.StatusBadRequest, Body: body}}},
				"cut in half": {Answers: map[string]answer{step: {Status: http.StatusBadRequest, Body: body, Cut: true}}},
				"died":        {DieAt: step},
				"no words":    {Answers: map[string]answer{step: {Status: http.StatusInternalServerError, Body: "<html>"}}},
			} {
				spec := goodSpec(t)
				m, err := launch(t, fake(t, s), spec)
				if err == nil {
					t.Errorf("%s: launched %+v", name, m)
					continue
				}
				if strings.ContainsRune(err.Error(), 0x1b) {
					t.Errorf("%s: the error steers a terminal: %q", name, err)
				}
				if name == "refused" && (errs.KindOf(err) != errs.Unavailable || !strings.Contains(err.Error(), "No such file") || errs.HintOf(err) == "") {
					t.Errorf("%s: %v (%s)", name, err, errs.HintOf(err))
				}
				wantOnlyLogs(t, spec.Dir)
				if left, err := host.ProcessesIn(filepath.Dir(spec.Dir)); err != nil || len(left) > 0 {
					t.Errorf("%s: %v is left, %v", name, left, err)
				}
			}
		})
	}
}

func TestLaunchTellsLastWords(t *testing.T) {
	for name, c := range map[string]struct {
		script script
		want   string
	}{
		"an error": {script{Exit: 1, Says: "2026-11-24T12:00:00.0 [banger-x:main:INFO] Running\n" +
			"2026-11-24T12:00:00.0 [banger-x:main:ERROR] RunWithApiError error: Failed to open the API socket\n" +
			"2026-11-24T12:00:00.0 [banger-x:main:ERROR] Firecracker exiting with error. exit_code=1\n"}, "RunWithApiError error: Failed to open the API socket"},
		"a panic":        {script{Exit: 1, Says: "thread 'main' panicked\n"}, "thread 'main' panicked"},
		"speechless":     {script{Exit: 3}, "exit status 3"},
		"another's name": {script{ID: "banger-other\x1b[31m"}, `is answered by "banger-other [31m"`},
		"too old":        {script{Version: "1.6.0"}, "Firecracker 1.6 is older than 1.7, the oldest that banger works with"},
	} {
		spec := goodSpec(t)
		_, err := launch(t, fake(t, c.script), spec)
		if err == nil || !strings.HasSuffix(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
		wantOnlyLogs(t, spec.Dir)
	}
}

// A Firecracker that never answers is ended when the launch is given up.
func TestALaunchThatHangsIsEnded(t *testing.T) {
	spec := goodSpec(t)
	ctx, cancel := context.WithCancel(t.Context())
	h := fake(t, script{Silent: true, Says: "started\n"})
	if err := os.MkdirAll(spec.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	failed := make(chan error, 1)
	go func() { _, err := h.Launch(ctx, spec); failed <- err }()
	awaitText(t, filepath.Join(spec.Dir, logFile), "started")
	cancel()
	if err := <-failed; !errors.Is(err, context.Canceled) || errs.KindOf(err) != errs.Unavailable {
		t.Errorf("got %v", err)
	}
	wantOnlyLogs(t, spec.Dir)
	if left, err := host.ProcessesIn(filepath.Dir(spec.Dir)); err != nil || len(left) > 0 {
		t.Errorf("%v is left, %v", left, err)
	}
}

// The whole life of a machine, through a change of daemons.
func TestLife(t *testing.T) { testLife(t, goodSpec(t)) }

// All is the same for one that is confined.
func TestLifeInAJail(t *testing.T) {
	if err := jail.Check(); err != nil {
		t.Skipf("SKIP: %v", err)
	}
	if _, err := os.Stat("/dev/kvm"); err != nil {
		t.Skipf("SKIP: a jail of Firecracker's has the host's KVM: %v", err)
	}
	spec := goodSpec(t)
	spec.Jailed = true
	testLife(t, spec)
}

func testLife(t *testing.T, spec hypervisor.MachineSpec) {
	h := fake(t, script{})
	m, err := launch(t, h, spec)
	if err != nil {
		t.Fatal(err)
	}
	echo(t, m)
	echo(t, m)
	record := m.Record()
	if record.Backend != hypervisor.Firecracker {
		t.Errorf("its record says %q", record.Backend)
	}
	if spec.Jailed {
		checkJail(t, record, spec)
	}
	m.Close()
	other := record
	other.VMID = "another"
	if m, err := h.Adopt(t.Context(), other); errs.KindOf(err) != errs.Conflict {
		t.Errorf("a machine of another name was adopted: %v, %v", m, err)
	}
	m, err = h.Adopt(t.Context(), record)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	echo(t, m)
	for _, change := range []func(context.Context) error{m.Pause, m.Resume} {
		if err := change(t.Context()); err != nil {
			t.Error(err)
		}
	}
	requests, err := os.ReadFile(filepath.Join(spec.Dir, "requests"))
	if want := "PATCH /vm {\"state\":\"Paused\"}\nPATCH /vm {\"state\":\"Resumed\"}\n"; !spec.Jailed && (err != nil || !strings.HasSuffix(string(requests), want)) {
		t.Errorf("it was told %q", requests)
	}
	if err := m.Kill(t.Context()); err != nil {
		t.Error(err)
	}
	if e := m.Exit(); e.Clean || e.Reason != "killed on request" {
		t.Errorf("exit %+v", e)
	}
	wantOnlyLogs(t, spec.Dir)
	if _, err := h.Adopt(t.Context(), record); errs.KindOf(err) != errs.NotFound {
		t.Errorf("a machine that is gone was adopted: %v", err)
	}
}

// checkJail looks at a confined machine's process, and at what it could change.
func checkJail(t *testing.T, record hypervisor.Record, spec hypervisor.MachineSpec) {
	t.Helper()
	id := jail.ID(spec.VMID)
	s, err := jail.Look(record.Process)
	if err != nil {
		t.Fatal(err)
	}
	if s.UID != id || s.GID != id || s.Capabilities != 0 || !s.NoNewPrivs || !s.Has("mnt") || s.Has("net") == (len(spec.NICs) > 0) ||
		s.Limits.FileBytes != spec.MemoryBytes || s.Limits.OpenFiles != openFiles || s.Limits.Processes != spec.CPUs+helpers {
		t.Errorf("%+v", s)
	}
	if info, err := os.Stat(spec.Disks[0].Path); err != nil || info.Sys().(*syscall.Stat_t).Uid != uint32(id) {
		t.Errorf("its disk: %+v, %v", info, err)
	}
	root := fmt.Sprintf("/proc/%d/root", record.Process.PID)
	for path, there := range map[string]bool{
		spec.Kernel: true, "/dev/kvm": true, "/dev/net/tun": true, filepath.Join(spec.Dir, apiSocket): true,
		filepath.Join(spec.Dir, logFile): false, filepath.Join(spec.Dir, consoleOutPipe): false, "/etc/passwd": false, "/proc/self": false, "/dev/null": false,
	} {
		if _, err := os.Lstat(root + path); (err == nil) != there {
			t.Errorf("it sees %s: %v", path, err)
		}
	}
	// Nothing there is its own that it could give another name, or put something in the place of.
	for _, dir := range []string{"", socketDir} {
		info, err := os.Stat(filepath.Join(spec.Dir, dir))
		if err != nil || info.Sys().(*syscall.Stat_t).Uid != uint32(os.Geteuid()) || info.Mode().Perm()&0o022 != 0 {
			t.Errorf("the directory %q is %v of %+v, %v", dir, info.Mode(), info.Sys(), err)
		}
	}
}

// echo talks to the guest.
func echo(t *testing.T, m hypervisor.Machine) {
	t.Helper()
	c, err := m.Channel(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, "hello\n"); err != nil {
		t.Fatal(err)
	}
	if said, err := bufio.NewReader(c).ReadString('\n'); err != nil || said != "hello\n" {
		t.Errorf("the guest says %q, %v", said, err)
	}
}

// Firecracker 1.16 does not pass the host's bytes on after a pause, so it is not paused.
func TestAVersionThatCanNotBePaused(t *testing.T) {
	m, err := launch(t, fake(t, script{Version: "1.16.1"}), goodSpec(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Pause(t.Context()); errs.KindOf(err) != errs.Unavailable || errs.HintOf(err) == "" {
		t.Errorf("got %v", err)
	}
}

// What an earlier life has left stands in nobody's way.
func TestStaleFilesAreReplaced(t *testing.T) {
	spec := goodSpec(t)
	if err := os.MkdirAll(spec.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(spec.Dir, socketDir), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{apiSocket, vsockSocket, knockSocket(), consoleOutPipe, logPipe} {
		if err := os.WriteFile(filepath.Join(spec.Dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	m, err := launch(t, fake(t, script{}), spec)
	if err != nil {
		t.Fatal(err)
	}
	echo(t, m)
}

// A machine whose daemon died before it had stored its record is found by its socket, and is
// gone when Remove returns; one that answers to another name is left alone.
func TestRemoveWithoutARecord(t *testing.T) {
	h, spec := fake(t, script{}), goodSpec(t)
	m, err := launch(t, h, spec)
	if err != nil {
		t.Fatal(err)
	}
	process := m.Record().Process
	m.Close()
	if err := h.Remove(t.Context(), spec.VMID, spec.Dir, nil); err != nil {
		t.Fatal(err)
	}
	if left, err := process.Open(); errs.KindOf(err) != errs.NotFound {
		t.Errorf("it is still there: %v, %v", left, err)
	}
	wantOnlyLogs(t, spec.Dir)
	for range 2 { // finding nothing is success
		if err := h.Remove(t.Context(), spec.VMID, spec.Dir, nil); err != nil {
			t.Error(err)
		}
	}
	h, spec = fake(t, script{}), goodSpec(t)
	if m, err = launch(t, h, spec); err != nil {
		t.Fatal(err)
	}
	if err := h.Remove(t.Context(), "another", spec.Dir, nil); errs.KindOf(err) != errs.Conflict {
		t.Errorf("a machine of another name was removed: %v", err)
	}
	echo(t, m)
	if err := h.Remove(t.Context(), spec.VMID, spec.Dir, new(m.Record())); err != nil {
		t.Error(err)
	}
	<-m.Done()
}

// A process in the VM's directory may be another VMM's, or end before it takes a connection.
func TestRemoveDoesNotWaitForWhatNeverComes(t *testing.T) {
	start := func(dir string) (end func() error) {
		in, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer in.Close()
		child, err := host.Detach(host.Detached{Path: "sh", Args: []string{"-c", "read line", "banger-" + filepath.Base(dir)}, Dir: dir, Stdin: in})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = child.End(context.Background()) })
		if found, err := host.ProcessesIn(filepath.Dir(dir)); err != nil || len(found) == 0 {
			t.Fatalf("it is not found: %v, %v", found, err)
		}
		return w.Close
	}
	remove := func(dir string) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		if err := fake(t, script{}).Remove(ctx, filepath.Base(dir), dir, nil); err != nil {
			t.Error(err)
		}
	}
	anothers := t.TempDir()
	defer start(anothers)()
	remove(anothers)

	short := t.TempDir()
	if err := errors.Join(os.Mkdir(filepath.Join(short, socketDir), 0o700), makePipe(short, logPipe)); err != nil {
		t.Fatal(err)
	}
	end := start(short)
	time.AfterFunc(300*time.Millisecond, func() { _ = end() })
	remove(short)
}

// How a machine went is told by its exit code, or to those who are not its parent by its log.
func TestExplain(t *testing.T) {
	const line = "2026-11-24T12:00:00.0 [banger-x:main:%s] %s\n"
	for name, c := range map[string]struct {
		log   string
		want  string
		clean bool
	}{
		"by the guest": {fmt.Sprintf(line, "INFO", "Firecracker exiting successfully. exit_code=0"), "by the guest", true},
		"bad syscall":  {fmt.Sprintf(line, "ERROR", "Firecracker exiting with error. exit_code=148"), "a system call that its filter forbids", false},
		"with words": {fmt.Sprintf(line, "ERROR", "Unable to read from \x1b[2Jdisk") + fmt.Sprintf(line, "ERROR", "Failed to read: MissingAddressRange") +
			fmt.Sprintf(line, "ERROR", "Firecracker exiting with error. exit_code=1"), "Firecracker failed: Unable to read from  [2Jdisk", false},
		"suddenly": {fmt.Sprintf(line, "ERROR", "Something else"), "Firecracker ended unexpectedly", false},
		"no log":   {"", "Firecracker ended unexpectedly", false},
	} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, logFile), []byte(c.log), 0o600); err != nil {
			t.Fatal(err)
		}
		m := newMachine(hypervisor.Record{Dir: dir})
		if e := m.explain(hypervisor.Ending{}); e.Clean != c.clean || !strings.Contains(e.Reason, c.want) || e.At.IsZero() {
			t.Errorf("%s: %+v", name, e)
		}
	}
}

func TestCheck(t *testing.T) {
	for name, change := range map[string]func(*hypervisor.MachineSpec){
		"an id with a space":  func(s *hypervisor.MachineSpec) { s.VMID = "a b" },
		"TCG":                 func(s *hypervisor.MachineSpec) { s.Accel = hypervisor.TCG },
		"nested":              func(s *hypervisor.MachineSpec) { s.Nested = true },
		"33 CPUs":             func(s *hypervisor.MachineSpec) { s.CPUs = 33 },
		"no CPU":              func(s *hypervisor.MachineSpec) { s.CPUs = 0 },
		"qcow2":               func(s *hypervisor.MachineSpec) { s.Disks[0].Format = "qcow2" },
		"a missing disk":      func(s *hypervisor.MachineSpec) { s.Disks[0].Path = "/nonexistent" },
		"a name that is none": func(s *hypervisor.MachineSpec) { s.Disks[0].Path = oddFile(t) },
		"twelve disks":        func(s *hypervisor.MachineSpec) { s.Disks = make([]hypervisor.Disk, 12) },
		"user networking":     func(s *hypervisor.MachineSpec) { s.NICs[0].Mode = hypervisor.NICUser },
		"no TAP":              func(s *hypervisor.MachineSpec) { s.NICs[0].TAPName = "" },
		"a broadcast MAC":     func(s *hypervisor.MachineSpec) { s.NICs[0].MAC = "ff:ff:ff:ff:ff:ff" },
		"long arguments":      func(s *hypervisor.MachineSpec) { s.Cmdline = []string{strings.Repeat("x", 2000)} },
		"two arguments":       func(s *hypervisor.MachineSpec) { s.Cmdline = []string{"a init=/bin/sh"} },
	} {
		spec := goodSpec(t)
		change(&spec)
		if err := check(spec); errs.KindOf(err) != errs.Invalid && errs.KindOf(err) != errs.Unavailable || err == nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := check(goodSpec(t)); err != nil {
		t.Error(err)
	}
}

// oddFile is a file whose name is no text.
func oddFile(t *testing.T) string {
	path := filepath.Join(t.TempDir(), "\xff")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// awaitText waits until a file has a text in it.
func awaitText(t *testing.T, path, text string) {
	t.Helper()
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if _, err := unix.InotifyAddWatch(fd, filepath.Dir(path), unix.IN_CREATE|unix.IN_MODIFY); err != nil {
		t.Fatal(err)
	}
	for buf := make([]byte, 4096); ; {
		if b, err := os.ReadFile(path); err == nil && strings.Contains(string(b), text) {
			return
		}
		if _, err := unix.Read(fd, buf); err != nil {
			t.Fatal(err)
		}
	}
}

// A machine whose API's socket is gone is not adopted and not talked to, and can be ended all the same.
func TestTheSocketIsGone(t *testing.T) {
	h, spec := fake(t, script{}), goodSpec(t)
	m, err := launch(t, h, spec)
	if err != nil {
		t.Fatal(err)
	}
	record := m.Record()
	m.Close()
	if err := os.Remove(filepath.Join(spec.Dir, apiSocket)); err != nil {
		t.Fatal(err)
	}
	if m, err := h.Adopt(t.Context(), record); err == nil || errs.KindOf(err) == errs.NotFound {
		t.Errorf("it was adopted, or taken for gone: %v, %v", m, err)
	}
	if err := h.Remove(t.Context(), spec.VMID, spec.Dir, &record); err != nil {
		t.Error(err)
	}
	if left, err := record.Process.Open(); errs.KindOf(err) != errs.NotFound {
		t.Errorf("it is still there: %v, %v", left, err)
	}
	wantOnlyLogs(t, spec.Dir)

	// The one that a daemon has open goes on being its; what is asked by a new connection fails.
	spec = goodSpec(t)
	if m, err = launch(t, h, spec); err != nil {
		t.Fatal(err)
	}
	m.(*machine).api.close()
	if err := os.Remove(filepath.Join(spec.Dir, apiSocket)); err != nil {
		t.Fatal(err)
	}
	if err := m.Pause(t.Context()); err == nil {
		t.Error("it was paused")
	}
	echo(t, m)
	if err := m.Kill(t.Context()); err != nil {
		t.Error(err)
	}
	wantOnlyLogs(t, spec.Dir)
}
