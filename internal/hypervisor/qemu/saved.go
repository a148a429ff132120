package qemu

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/host"
	"banger/internal/hypervisor"
)

// A machine that runs is saved while it does, by KVM: QEMU keeps track of the pages that the
// guest writes to and saves them again. TCG's threads and that do not go together in QEMU 7.2:
// of two guests saved so at the end of their boot one panicked when it went on. Under TCG a
// machine is paused before.
const (
	// lastPause is how long, in milliseconds, the CPUs of a running machine may stand still
	// while the last of its memory is written.
	lastPause = 60

	// liveLimit is how long a machine may run on while it is saved. One that changes its
	// memory faster than that is written would never be done.
	liveLimit = 5 * time.Second

	anyBandwidth = 1 << 50 // bytes a second

	pipeBytes = 1 << 20 // what an unprivileged process may have

	// undoLimit bounds how long a machine that could not be saved may take to go on.
	undoLimit = 10 * time.Second
)

// memoryBackend has the machine's memory be an object, that of savedMemory or one of huge pages.
func memoryBackend(spec hypervisor.MachineSpec) string {
	if spec.From == nil && !spec.HugePages {
		return ""
	}
	return ",memory-backend=" + ramBlock
}

// savedMemory describes memory that is mapped from a file. QEMU gives it the name that it
// has in a machine of its own memory, by which the two are kin.
func savedMemory(spec hypervisor.MachineSpec) string {
	b, err := json.Marshal(map[string]any{
		"qom-type": "memory-backend-file", "id": ramBlock, "x-use-canonical-path-for-ramblock-id": false,
		"mem-path": spec.From.Memory, "size": spec.MemoryBytes, "share": false,
	})
	if err != nil {
		panic(err) // strings, numbers and booleans only
	}
	return string(b)
}

// migrated keeps what QEMU says of saving or loading under way.
func (m *machine) migrated(data json.RawMessage) {
	var e struct{ Status string }
	_ = json.Unmarshal(data, &e) // what does not decode is no news
	select {
	case m.migration <- e.Status:
	default: // nobody waits
	}
}

// migrateBy has QEMU save to, or load from, a file by that command, and waits for the end of it.
// Meanwhile late is called once, if it takes longer than liveLimit.
func (m *machine) migrateBy(ctx context.Context, command string, file *os.File, parameters map[string]any, late func()) error {
	for len(m.migration) > 0 {
		<-m.migration
	}
	capabilities := []map[string]any{{"capability": "events", "state": true}, {"capability": "x-ignore-shared", "state": true}}
	if err := m.monitor.Execute(ctx, "migrate-set-capabilities", map[string]any{"capabilities": capabilities}, nil); err != nil {
		return err
	}
	if err := m.monitor.Execute(ctx, "migrate-set-parameters", parameters, nil); err != nil {
		return err
	}
	if err := m.monitor.Give(ctx, command, file); err != nil {
		return err
	}
	if err := m.monitor.Execute(ctx, command, map[string]any{"uri": "fd:" + command}, nil); err != nil {
		return err
	}
	limit := time.AfterFunc(liveLimit, late)
	defer limit.Stop()
	for {
		select {
		case status := <-m.migration:
			switch status {
			case "completed":
				return nil
			case "failed", "cancelled":
				return m.migrationError(ctx, status)
			}
		case <-m.monitor.Done():
			return m.monitor.err
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (m *machine) migrationError(ctx context.Context, status string) error {
	var info struct {
		Why string `json:"error-desc"`
	}
	if err := m.monitor.Execute(ctx, "query-migrate", nil, &info); err == nil && info.Why != "" {
		return errors.New(info.Why)
	}
	return fmt.Errorf("QEMU says that it has %s", status)
}

// load has a machine that was started without a state go on from one.
func (m *machine) load(ctx context.Context, state string) error {
	m.migrating.Lock()
	defer m.migrating.Unlock()
	f, err := os.Open(state)
	if err != nil {
		return err
	}
	defer f.Close()
	// A machine that moves tells its network's switches. This one has not moved, and its
	// address is still another's.
	return m.migrateBy(ctx, "migrate-incoming", f, map[string]any{"announce-rounds": 0}, func() {})
}

// Save writes what the machine is at one moment; see [hypervisor.Machine].
func (m *machine) Save(ctx context.Context, memory, state *os.File) error {
	m.migrating.Lock()
	defer m.migrating.Unlock()
	var was struct{ Running bool }
	err := m.monitor.Execute(ctx, "query-status", nil, &was)
	if err == nil && was.Running && m.Record().Accel == hypervisor.TCG {
		err = m.Pause(ctx)
	}
	if err == nil {
		err = m.save(ctx, memory, state)
	}
	if err != nil {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoLimit)
		defer cancel()
		_ = m.monitor.Execute(undo, "migrate_cancel", nil, nil) // says nothing if there is nothing to cancel
		if was.Running {
			err = errors.Join(err, m.Resume(undo))
		}
		return fmt.Errorf("save machine %s: %w", m.Record().VMID, err)
	}
	return nil
}

func (m *machine) save(ctx context.Context, memory, state *os.File) error {
	var size struct {
		Base    int64 `json:"base-memory"`
		Plugged int64 `json:"plugged-memory"`
	}
	if err := m.monitor.Execute(ctx, "query-memory-size-summary", nil, &size); err != nil {
		return err
	}
	// It is QEMU that says so, and that may be its guest's by now. None was given more than the host has.
	var host unix.Sysinfo_t
	if err := unix.Sysinfo(&host); err != nil {
		return err
	}
	if most := int64(host.Totalram) * int64(host.Unit); size.Base <= 0 || size.Base%pageBytes != 0 || size.Base > most {
		return fmt.Errorf("QEMU says that it has %d bytes of memory", size.Base)
	}
	if err := memory.Truncate(size.Base); err != nil {
		return err
	}
	out, in, err := os.Pipe()
	if err != nil {
		return err
	}
	defer out.Close()
	defer in.Close()
	// Less than this is slower, and nothing else.
	_, _ = unix.FcntlInt(in.Fd(), unix.F_SETPIPE_SZ, pipeBytes)
	written := make(chan error, 1)
	go func() {
		err := split(out, memory, state, size.Base)
		if err != nil {
			out.Close() // QEMU hears of it by its next write
		}
		written <- err
	}()
	parameters := map[string]any{"max-bandwidth": anyBandwidth, "downtime-limit": lastPause}
	err = m.migrateBy(ctx, "migrate", in, parameters, func() { _ = m.Pause(ctx) })
	in.Close()
	if err != nil {
		out.Close()
		return errors.Join(err, <-written)
	}
	select {
	case err := <-written:
		return err
	case <-ctx.Done(): // QEMU keeps its end open
		out.Close()
		return errors.Join(ctx.Err(), <-written)
	}
}

// Kin tells which machines can go on from each other's state; see [hypervisor.Hypervisor].
func (h *Hypervisor) Kin(spec hypervisor.MachineSpec) (string, error) {
	if spec.HugePages {
		return "", hypervisor.ErrHugePages()
	}
	program, err := h.digest()
	if err != nil {
		return "", err
	}
	cpu, err := host.CPUModel("/")
	if err != nil {
		return "", err
	}
	spec.VMID, spec.Kernel, spec.Initramfs, spec.From = "", "", "", nil
	disks, nics := make([]hypervisor.Disk, len(spec.Disks)), make([]hypervisor.NIC, len(spec.NICs))
	for i, d := range spec.Disks {
		disks[i] = hypervisor.Disk{Format: "raw", ReadOnly: d.ReadOnly}
	}
	for i, n := range spec.NICs {
		nics[i] = hypervisor.NIC{Mode: n.Mode}
	}
	spec.Disks, spec.NICs = disks, nics
	sum := sha256.New()
	fmt.Fprintf(sum, "%s\n%s\n%q", program, cpu, arguments(spec, host.SteadyTSC("/")))
	return hex.EncodeToString(sum.Sum(nil)), nil
}

// program is what is known of QEMU's file: it is read once.
type program struct {
	info   os.FileInfo
	digest string
}

// digest is the SHA-256 of the program that Launch would run.
func (h *Hypervisor) digest() (string, error) {
	path, err := host.LookPath(h.binary)
	if err != nil {
		return "", err
	}
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return "", err
	}
	h.reading.Lock()
	defer h.reading.Unlock()
	if p := h.program; p.info != nil && os.SameFile(p.info, info) && p.info.ModTime().Equal(info.ModTime()) && p.info.Size() == info.Size() {
		return p.digest, nil
	}
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		return "", err
	}
	h.program = program{info, hex.EncodeToString(sum.Sum(nil))}
	return h.program.digest, nil
}
