package firecracker

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"banger/internal/errs"
	"banger/internal/host"
	"banger/internal/hypervisor"
)

// What a machine is saved to, in its directory: it can write to files there only.
const (
	savedMemory = socketDir + "/saved.memory"
	savedState  = socketDir + "/saved.state"
)

// errNotSaved is the error of a version that can't give a saved machine another's network.
func errNotSaved() error {
	return errs.New(errs.Unavailable, "machines can be saved, and gone on from, by Firecracker %s and later, but not 1.16", savesSince).
		Try("install %s, or use --backend qemu", newest)
}

// Save writes what the machine is at one moment; see [hypervisor.Machine]. Firecracker saves
// machines that are paused, and its guest's connections are cut by that. It writes to files of its
// own, which are copied: it may keep them open, and what others go on from is not to be changed by
// whoever takes this one over.
func (m *machine) Save(ctx context.Context, memory, state *os.File) (err error) {
	if !m.has.saves {
		return errNotSaved()
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("save machine %s: %w", m.Record().VMID, err)
		}
	}()
	was, err := m.api.instance(ctx)
	if err != nil {
		return err
	}
	if was.State == running {
		if err := m.Pause(ctx); err != nil {
			return err
		}
		defer func() {
			if err != nil {
				err = errors.Join(err, m.Resume(context.WithoutCancel(ctx)))
			}
		}()
	}
	files := map[string]*os.File{savedMemory: memory, savedState: state}
	defer func() {
		for name := range files {
			err = errors.Join(err, removeIfThere(m.path(name)))
		}
	}()
	for name := range files {
		if err := makeWritable(m.path(name)); err != nil {
			return err
		}
	}
	if err := m.api.do(ctx, put("/snapshot/create", snapshot{Type: "Full", State: savedState, Memory: savedMemory}), nil); err != nil {
		return err
	}
	m.knocker.forget() // the guest knocks again when its connections have been cut
	for name, file := range files {
		if err := copySparse(ctx, file, m.path(name)); err != nil {
			return err
		}
	}
	return nil
}

func (m *machine) path(name string) string { return filepath.Join(m.Record().Dir, name) }

// makeWritable makes an empty file that the machine's process can write to; nobody else gets as
// far as that.
func makeWritable(path string) error {
	if err := removeIfThere(path); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(f.Chmod(0o666), f.Close())
}

func removeIfThere(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// copySparse copies a file to an empty one, in which what is zero becomes a hole.
func copySparse(ctx context.Context, to *os.File, from string) error {
	f, err := os.Open(from)
	if err != nil {
		return err
	}
	defer f.Close()
	const most, page = 1 << 20, 4 << 10 // bytes; holes are made of pages
	b, zeros := make([]byte, most), make([]byte, page)
	for at := int64(0); ; {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := io.ReadFull(f, b)
		for begin := 0; begin < n; {
			end := min(begin+page, n)
			if bytes.Equal(b[begin:end], zeros[:end-begin]) {
				begin = end
				continue
			}
			for end < n && !bytes.Equal(b[end:min(end+page, n)], zeros[:min(page, n-end)]) {
				end = min(end+page, n)
			}
			if _, err := to.WriteAt(b[begin:end], at+int64(begin)); err != nil {
				return err
			}
			begin = end
		}
		at += int64(n)
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return to.Truncate(at)
		}
		if err != nil {
			return err
		}
	}
}

// loading gives the call that has a Firecracker which was told nothing yet go on from a saved
// machine, paused. What it finds by names in its directory, sockets and disks, are its own.
func loading(spec hypervisor.MachineSpec) call {
	l := snapshotLoad{State: spec.From.State, Memory: memoryBackend{Type: "File", Path: spec.From.Memory}}
	for i, n := range spec.NICs {
		l.Networks = append(l.Networks, networkOverride{ID: nicID(i), TAP: n.TAPName})
	}
	return put("/snapshot/load", l)
}

// Kin tells which machines can go on from each other's state; see [hypervisor.Hypervisor].
func (h *Hypervisor) Kin(spec hypervisor.MachineSpec) (string, error) {
	text, err := h.Version(context.Background())
	if err != nil {
		return "", err
	}
	v, err := parseVersion(text)
	if err != nil {
		return "", err
	}
	has, err := featuresOf(v)
	if err != nil {
		return "", err
	}
	if !has.saves {
		return "", errNotSaved()
	}
	if spec.HugePages {
		return "", hypervisor.ErrHugePages()
	}
	own, err := h.options.tuning()
	if err != nil {
		return "", err
	}
	path, err := host.LookPath(h.program())
	if err != nil {
		return "", err
	}
	program, err := os.Stat(path)
	if err != nil {
		return "", err
	}
	cpu, err := host.CPUModel("/")
	if err != nil {
		return "", err
	}
	sum := sha256.New()
	fmt.Fprintf(sum, "firecracker %s %d %d\n%s\n", text, program.Size(), program.ModTime().UnixNano(), cpu)
	spec.Kernel, spec.Initramfs, spec.From = "", "", nil
	nics := make([]hypervisor.NIC, len(spec.NICs))
	for i, n := range spec.NICs {
		nics[i] = hypervisor.NIC{Mode: n.Mode}
	}
	spec.NICs = nics
	for _, c := range configuration(spec, has, own) {
		body, err := json.Marshal(c.body)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(sum, "%s %s\n", c.path, body)
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}
