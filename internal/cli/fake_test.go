package cli

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"banger/api"
)

// fake is a daemon that keeps its VMs in memory. It speaks the API as the real one does;
// its guests are in fakeguest_test.go.
type fake struct {
	socket string
	root   string // directory under which each VM has a directory that is its file system
	server *http.Server
	done   chan struct{} // closed when the daemon was asked to stop

	mu       sync.Mutex
	changed  *sync.Cond
	next     int
	vms      map[string]*api.VM // by id
	leases   map[string]string  // lease of a VM, by its id
	ops      map[string]*fakeOp
	journal  []string // what was asked, for tests to read
	sessions map[string]*fakeSession
	requests []api.CreateVM

	snapshots []api.Snapshot
}

type fakeOp struct {
	events []api.Event
	cancel chan struct{} // closed to cancel
	once   sync.Once
}

// serveFake starts a fake daemon on socket.
func serveFake(socket, root string) (*fake, error) {
	l, err := net.Listen("unix", socket)
	if err != nil {
		return nil, err
	}
	f := &fake{socket: socket, root: root, done: make(chan struct{}), vms: map[string]*api.VM{}, leases: map[string]string{},
		ops: map[string]*fakeOp{}, sessions: map[string]*fakeSession{}}
	f.changed = sync.NewCond(&f.mu)
	f.server = &http.Server{Handler: f.routes()}
	go f.server.Serve(l)
	return f, nil
}

func (f *fake) close() { f.server.Close() }

// note adds a line to the journal. The lock is held.
func (f *fake) note(format string, args ...any) {
	f.journal = append(f.journal, fmt.Sprintf(format, args...))
	f.changed.Broadcast()
}

func (f *fake) noteNow(format string, args ...any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.note(format, args...)
}

// await returns once a line of the journal matches.
func (f *fake) await(pattern string) {
	re := regexp.MustCompile(pattern)
	f.mu.Lock()
	defer f.mu.Unlock()
	for !slices.ContainsFunc(f.journal, re.MatchString) {
		f.changed.Wait()
	}
}

func (f *fake) text() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return strings.Join(f.journal, "\n") + "\n"
}

func fail(code, hint, format string, args ...any) *api.Error {
	return &api.Error{Code: code, Message: fmt.Sprintf(format, args...), Hint: hint}
}

var fakeStatus = map[string]int{"not_found": 404, "conflict": 409, "invalid": 400, "busy": 423, "unavailable": 503, "internal": 500}

func (f *fake) routes() http.Handler {
	mux := http.NewServeMux()
	handle := func(pattern string, h func(r *http.Request) (any, *api.Error)) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			f.mu.Lock()
			v, err := h(r)
			f.mu.Unlock()
			w.Header().Set("Content-Type", "application/json")
			if err != nil {
				w.WriteHeader(fakeStatus[err.Code])
				v = err
			}
			json.NewEncoder(w).Encode(v)
		})
	}
	handle("GET /v1/daemon", func(*http.Request) (any, *api.Error) {
		d := api.Daemon{Version: "fake-1", PID: os.Getpid(), StartedAt: time.Now(), StateDir: f.root, Socket: f.socket, VMs: len(f.vms)}
		for _, vm := range f.list() {
			if vm.State == api.StateRunning {
				d.Running++
			}
		}
		return d, nil
	})
	handle("POST /v1/daemon/stop", func(*http.Request) (any, *api.Error) { close(f.done); return nil, nil })
	handle("GET /v1/vms", func(r *http.Request) (any, *api.Error) {
		return slices.DeleteFunc(f.list(), func(vm api.VM) bool { return r.FormValue("up") == "true" && vm.State == api.StateStopped }), nil
	})
	handle("GET /v1/vms/{ref}", func(r *http.Request) (any, *api.Error) { return f.find(r.PathValue("ref")) })
	handle("POST /v1/vms", f.create)
	handle("POST /v1/vms/{ref}/start", f.onVM("start", func(vm *api.VM, _ *http.Request) *api.Error { return f.up(vm) }))
	handle("POST /v1/vms/{ref}/stop", f.onVM("stop", f.stop))
	handle("DELETE /v1/vms/{ref}", f.onVM("remove", f.remove))
	handle("DELETE /v1/operations/{id}", func(r *http.Request) (any, *api.Error) {
		op := f.ops[r.PathValue("id")]
		op.once.Do(func() { close(op.cancel) })
		return nil, nil
	})
	mux.HandleFunc("GET /v1/operations/{id}/events", f.events)
	mux.HandleFunc("GET /v1/lease", f.lease)
	mux.HandleFunc("GET /v1/vms/{ref}/stream", f.stream)
	mux.HandleFunc("GET /v1/vms/{ref}/console", f.console)
	mux.HandleFunc("GET /v1/vms/{ref}/logs", f.logs)
	f.assets(handle)
	f.runtime(mux, handle)
	f.system(handle)
	f.network(handle)
	f.snapshotRoutes(handle)
	mux.HandleFunc("GET /v1/events", f.transitions)
	mux.HandleFunc("GET /v1/system/verify", f.verify)
	return mux
}

func (f *fake) list() []api.VM {
	list := []api.VM{}
	for _, vm := range f.vms {
		list = append(list, *vm)
	}
	slices.SortFunc(list, func(a, b api.VM) int { return strings.Compare(a.Name, b.Name) })
	return list
}

func (f *fake) find(ref string) (*api.VM, *api.Error) {
	for _, vm := range f.vms {
		if vm.Name == ref || vm.ID == ref {
			return vm, nil
		}
	}
	return nil, fail("not_found", "banger ls -a lists them", "there is no VM %s", strconv.Quote(ref))
}

var fakeLabel = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)

func (f *fake) create(r *http.Request) (any, *api.Error) {
	var req api.CreateVM
	if err := json.NewDecoder(r.Body).Decode(&req); err != nil {
		return nil, fail("invalid", "", "%s", err)
	}
	f.requests = append(f.requests, req)
	f.next++
	vm := &api.VM{ID: fmt.Sprintf("%012x", f.next), Name: req.Name, State: api.StateStopped, Image: req.Image, Kernel: "debian",
		Backend: "qemu", Accel: "tcg", CPUs: 2, MemoryBytes: 1 << 30, CreatedAt: time.Now(), AutoRemove: req.AutoRemove,
		Disk: api.Disk{Driver: "qcow2", VirtualBytes: 8 << 30, ChangedBytes: new(int64(512 << 10)), AllocatedBytes: 1 << 20}, Network: api.Network{Mode: "user", IP: "10.0.2.15"}}
	if vm.Name == "" {
		vm.Name = fmt.Sprintf("calm-otter-%d", f.next)
	}
	if vm.Image == "" {
		vm.Image = "debian"
	}
	if req.CPUs != nil {
		vm.CPUs = *req.CPUs
	}
	if req.MemoryBytes != nil {
		vm.MemoryBytes = *req.MemoryBytes
	}
	_, taken := f.find(vm.Name)
	switch {
	case !fakeLabel.MatchString(vm.Name):
		return nil, fail("invalid", "use lower-case letters, digits and inner hyphens", "%q can't be a name", vm.Name)
	case taken == nil:
		return nil, fail("conflict", "choose another", "there is a VM %q already", vm.Name)
	case vm.CPUs < 1 || vm.CPUs > 64:
		return nil, fail("invalid", "choose 1 to 64", "%d CPUs", vm.CPUs)
	case vm.MemoryBytes < 32<<20:
		return nil, fail("invalid", "choose 32M or more", "%d bytes of memory are too few", vm.MemoryBytes)
	case !slices.Contains([]string{"", "auto", "user", "none", "bridge"}, req.Net):
		return nil, fail("invalid", "choose auto, user, none or bridge", "there is no network mode %q", req.Net)
	case vm.Image == "absent":
		return nil, fail("not_found", "banger image ls", "there is no image %q", vm.Image)
	}
	f.note("create %s env=%v start=%v lease=%v autoremove=%v", vm.Name, req.Env, req.Start, req.Lease != "", req.AutoRemove)
	if req.DiskLimit != nil || req.HugePages {
		f.note("limit=%+v huge=%v", req.DiskLimit, req.HugePages)
	}
	f.note("net=%s forwards=%v isolated=%v host=%v", req.Net, req.Forwards, req.Isolated, req.HostAccess)
	f.vms[vm.ID] = vm
	if req.Lease != "" {
		f.leases[vm.ID] = req.Lease
	}
	if req.Start {
		f.up(vm)
	}
	if vm.Image == "never" { // boots until it is cancelled
		vm.State = api.StateCreating
	}
	return f.begin("create", vm), nil
}

// begin makes an operation that is done, or one that waits for its cancellation.
func (f *fake) begin(kind string, vm *api.VM) api.Operation {
	op := &fakeOp{cancel: make(chan struct{}), events: []api.Event{{Stage: "waiting for the guest"}}}
	f.next++
	id := "op" + strconv.Itoa(f.next)
	f.ops[id] = op
	if vm.State != api.StateCreating {
		last := api.Event{Finished: true}
		if _, there := f.vms[vm.ID]; there {
			shown := *vm
			last.VM = &shown
		}
		op.events = append(op.events, last)
	}
	return api.Operation{ID: id, Kind: kind, VM: vm.ID, Name: vm.Name}
}

func (f *fake) onVM(kind string, act func(*api.VM, *http.Request) *api.Error) func(*http.Request) (any, *api.Error) {
	return func(r *http.Request) (any, *api.Error) {
		vm, err := f.find(r.PathValue("ref"))
		if err != nil {
			return nil, err
		}
		if err := act(vm, r); err != nil {
			return nil, err
		}
		f.note("%s %s", kind, vm.Name)
		return f.begin(kind, vm), nil
	}
}

func (f *fake) up(vm *api.VM) *api.Error {
	now := time.Now()
	vm.State, vm.StartedAt, vm.Start = api.StateRunning, &now, &api.Start{Kind: "cold", MS: 2345}
	return nil
}

func (f *fake) stop(vm *api.VM, r *http.Request) *api.Error {
	var req api.StopVM
	json.NewDecoder(r.Body).Decode(&req)
	if req.TimeoutSeconds != nil {
		f.note("limit %d", *req.TimeoutSeconds)
		if *req.TimeoutSeconds < 0 {
			return fail("invalid", "", "%d seconds is no time to wait", *req.TimeoutSeconds)
		}
	}
	now := time.Now()
	vm.State, vm.StoppedAt = api.StateStopped, &now
	if vm.AutoRemove {
		delete(f.vms, vm.ID)
	}
	return nil
}

func (f *fake) remove(vm *api.VM, r *http.Request) *api.Error {
	if vm.State == api.StateRunning && r.URL.Query().Get("force") != "true" {
		return fail("conflict", "banger rm -f "+vm.Name, "%s runs", vm.Name)
	}
	delete(f.vms, vm.ID)
	return nil
}

func (f *fake) events(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	op := f.ops[r.PathValue("id")]
	f.mu.Unlock()
	enc := json.NewEncoder(w)
	finished := false
	for _, e := range op.events {
		enc.Encode(e)
		finished = finished || e.Finished
	}
	http.NewResponseController(w).Flush()
	if finished {
		return
	}
	f.noteNow("following")
	select {
	case <-op.cancel:
		f.mu.Lock()
		for id, vm := range f.vms {
			if vm.State == api.StateCreating {
				delete(f.vms, id)
				f.note("rolled back %s", vm.Name)
			}
		}
		f.mu.Unlock()
		enc.Encode(api.Event{Finished: true, Error: fail("internal", "", "create: cancelled")})
	case <-r.Context().Done():
	}
}

func (f *fake) lease(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	f.next++
	id := "lease" + strconv.Itoa(f.next)
	f.mu.Unlock()
	json.NewEncoder(w).Encode(map[string]string{"id": id})
	http.NewResponseController(w).Flush()
	<-r.Context().Done()
	f.mu.Lock()
	defer f.mu.Unlock()
	for vm, l := range f.leases {
		if _, there := f.vms[vm]; there && l == id {
			delete(f.vms, vm)
			f.note("lease removed a VM")
		}
	}
	f.note("lease ended")
}

func (f *fake) logs(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	_, err := f.find(r.PathValue("ref"))
	f.mu.Unlock()
	if err != nil {
		w.WriteHeader(404)
		json.NewEncoder(w).Encode(err)
		return
	}
	io.WriteString(w, "booting\x1b]0;title\x07\n")
	if r.URL.Query().Get("follow") == "true" {
		http.NewResponseController(w).Flush()
		f.noteNow("following logs")
		<-r.Context().Done()
	}
}

func (f *fake) assets(handle func(string, func(*http.Request) (any, *api.Error))) {
	image := api.Image{Name: "debian", Names: []string{"debian", "base:1"}, Title: "debian", Digest: "sha256:0123456789abcdef", Stale: "its manifest\x1b has changed", Rebuild: "banger image build debian", Distribution: "debian", Release: "12\x1b[2J", VirtualBytes: 4 << 30, AllocatedBytes: 300 << 20, BuiltAt: time.Now()}
	kernel := api.Kernel{Name: "debian", Version: "6.1.0", Arch: "x86_64", Bytes: 40 << 20, Modules: true, CreatedAt: time.Now(), UsedBy: []string{"a", "b"}}
	byName := func(r *http.Request, what string) *api.Error {
		if n := r.PathValue("name"); n != "debian" {
			return fail("not_found", "", "there is no %s %q", what, n)
		}
		return nil
	}
	handle("GET /v1/images", func(*http.Request) (any, *api.Error) {
		broken := api.Image{Name: "broken", Title: "broken", Names: []string{"broken"}, Damage: "the record of image broken is damaged", Mend: "remove it: banger image rm broken"}
		return []api.Image{image, broken}, nil
	})
	handle("GET /v1/images/{name}", func(r *http.Request) (any, *api.Error) {
		switch r.PathValue("name") {
		case "never", "absent": // as the creation of a VM will find
			return image, nil
		case "container":
			own := image
			own.Config = &api.ImageConfig{Entrypoint: []string{"echo"}, Cmd: []string{"arg"}, User: "app", WorkDir: "/srv"}
			return own, nil
		}
		return image, byName(r, "image")
	})
	handle("POST /v1/images/tag", func(r *http.Request) (any, *api.Error) {
		var req api.TagImage
		json.NewDecoder(r.Body).Decode(&req)
		f.note("tag %s %s", req.Image, req.Name)
		return nil, nil
	})
	handle("POST /v1/images/import", func(r *http.Request) (any, *api.Error) {
		var req api.ImportImage
		json.NewDecoder(r.Body).Decode(&req)
		what := ""
		if req.SizeBytes != nil {
			what = fmt.Sprintf(" ref %s, %d bytes", req.Ref, *req.SizeBytes)
		}
		f.note("import image %s %s%s", req.Name, filepath.Base(req.Path), what)
		return f.begin("import", &api.VM{}), nil
	})
	handle("GET /v1/images/{name}/export", func(r *http.Request) (any, *api.Error) {
		return "archive as " + r.FormValue("format"), byName(r, "image")
	})
	handle("POST /v1/images/pull", func(r *http.Request) (any, *api.Error) {
		var req api.PullImage
		json.NewDecoder(r.Body).Decode(&req)
		who := "none"
		if c := req.Credentials; c != nil {
			who = c.Username + ":" + c.Password
		}
		f.note("pull image %s as %s by %s", req.Reference, req.Name, who)
		op := f.begin("pull", &api.VM{})
		events := f.ops[op.ID].events
		events[len(events)-1].Image = cmp.Or(req.Name, "chosen:1")
		return op, nil
	})
	handle("POST /v1/images/import-stream", func(r *http.Request) (any, *api.Error) {
		var req api.ImportImage
		json.Unmarshal([]byte(r.FormValue("request")), &req)
		n, _ := io.Copy(io.Discard, r.Body)
		f.note("import image %s: %d bytes", req.Name, n)
		return f.begin("import", &api.VM{}), nil
	})
	handle("POST /v1/images/build", func(r *http.Request) (any, *api.Error) {
		var req api.BuildImage
		json.NewDecoder(r.Body).Decode(&req)
		f.note("build image %s %s refresh=%v", req.Name, filepath.Base(req.Path), req.Refresh)
		return f.begin("build image", &api.VM{}), nil
	})
	handle("POST /v1/images/{name}/check", func(r *http.Request) (any, *api.Error) {
		return []api.NewerPackage{{Name: "curl", Has: "7.88.1-10", Now: "7.88.1-11\x1b"}}, byName(r, "image")
	})
	handle("POST /v1/vms/{ref}/commit", func(r *http.Request) (any, *api.Error) {
		var req api.CommitVM
		json.NewDecoder(r.Body).Decode(&req)
		f.note("commit %s %s stop=%v keep=%v", r.PathValue("ref"), req.Name, req.Stop, req.KeepResidue)
		return f.begin("commit", &api.VM{}), nil
	})
	handle("POST /v1/images/prune", func(r *http.Request) (any, *api.Error) {
		return api.PrunedImages{Images: []api.Image{{Title: "debian@sha256:aa\x1b", AllocatedBytes: 3 << 20}}}, nil
	})
	handle("DELETE /v1/images/{name}", func(r *http.Request) (any, *api.Error) { return nil, byName(r, "image") })
	tmpl := api.Template{Name: "debian-0a1b2c3d", Image: "debian", Kernel: "debian", CPUs: 2, MemoryBytes: 512 << 20, DiskBytes: 4 << 30, DiskDriver: "qcow2",
		Net: "user", Accel: "tcg", Bytes: 122 << 20, UsedAt: time.Now(), UsedBy: []string{"a"}}
	handle("GET /v1/templates", func(*http.Request) (any, *api.Error) { return []api.Template{tmpl}, nil })
	handle("POST /v1/templates", func(r *http.Request) (any, *api.Error) {
		var req api.CreateVM
		json.NewDecoder(r.Body).Decode(&req)
		note := "template " + req.Image
		if req.CPUs != nil {
			note += fmt.Sprintf(" %d", *req.CPUs)
		}
		f.note("%s", note)
		return f.begin("build template", &api.VM{}), nil
	})
	handle("DELETE /v1/templates/{name}", func(r *http.Request) (any, *api.Error) {
		return nil, fail("conflict", "", "template %s is in use by a", r.PathValue("name"))
	})
	handle("POST /v1/templates/prune", func(r *http.Request) (any, *api.Error) {
		f.note("prune to %s", r.FormValue("keep_bytes"))
		return []api.Template{{Name: "tiny-00000000"}}, nil
	})
	handle("GET /v1/pool", func(*http.Request) (any, *api.Error) {
		return []api.PoolImage{{Image: "debian", Wanted: 2, Ready: 1, MemoryBytes: 512 << 20, Trouble: "no room\x1b"}, {Image: "tiny", Wanted: 1}}, nil
	})
	handle("GET /v1/kernels", func(*http.Request) (any, *api.Error) { return []api.Kernel{kernel}, nil })
	handle("DELETE /v1/kernels/{name}", func(r *http.Request) (any, *api.Error) { return nil, byName(r, "kernel") })
	handle("POST /v1/kernels", func(r *http.Request) (any, *api.Error) {
		var req api.ImportKernel
		json.NewDecoder(r.Body).Decode(&req)
		if _, err := os.Stat(req.Path); err != nil {
			return nil, fail("invalid", "", "read the kernel: %s", err)
		}
		f.note("import %s %s %s", req.Name, filepath.Base(req.Path), filepath.Base(req.ModulesDir))
		return f.begin("import", &api.VM{}), nil
	})
	handle("GET /v1/disk-usage", func(*http.Request) (any, *api.Error) {
		freed := int64(3 << 20)
		return []api.DiskUse{{Kind: "image", Name: "debian", SharedBytes: 300 << 20}, {Kind: "kernel", Name: "debian", ExclusiveBytes: 40 << 20},
			{Kind: "vm", Name: "web", Driver: "qcow2", ExclusiveBytes: 5 << 20, SharedBytes: 300 << 20, FreedBytes: &freed},
			{Kind: "vm", Name: "idle", Driver: "qcow2", ExclusiveBytes: 1 << 20, SharedBytes: 300 << 20}}, nil
	})
	handle("POST /v1/vms/{ref}/trim", func(r *http.Request) (any, *api.Error) {
		_, err := f.find(r.PathValue("ref"))
		return api.Trimmed{GuestBytes: 1 << 30, HostBytes: 3 << 20}, err
	})
	handle("GET /v1/doctor", func(*http.Request) (any, *api.Error) {
		return []api.Check{{Name: "qemu", Status: "ok", Detail: "QEMU 7.2"},
			{Name: "kvm", Status: "failed", Detail: "no \x1b[31mKVM", Hint: "use tcg"},
			{Name: "tools", Status: "warning", Detail: "missing: mmdebstrap", Hint: "install it", Fix: []string{"touch", "fixed file"}}}, nil
	})
	handle("GET /v1/ssh", func(*http.Request) (any, *api.Error) {
		s := api.SSH{IdentityFile: filepath.Join(f.root, "id_ed25519")}
		for _, vm := range f.list() {
			s.HostKeys = append(s.HostKeys, vm.Name+".vm "+fakeHostKey)
		}
		return s, nil
	})
}

// forget empties the journal.
func (f *fake) forget() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.journal = nil
}
