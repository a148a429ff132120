// Package proof owns the question whether KVM works here: by what the CPU and the kernel
// say, and then by booting a machine whose whole userspace is a program of a few
// instructions. It knows no VMM but as a hypervisor.
package proof

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/google/renameio/v2"

	"banger/internal/host"
	"banger/internal/hypervisor"
)

// limit bounds the boot that proves KVM. On real hardware it takes half a second; in a
// virtual machine that itself is translated five, and several times that on a busy host.
const limit = 60 * time.Second

// Verdict is how machines are to be run, and why not with KVM.
type Verdict struct {
	Accel  hypervisor.Accel `json:"accel"`
	Reason string           `json:"reason,omitempty"` // why it is not KVM
}

// doubtAfter is how long a proof that failed is believed. The host may only have been too busy, or
// have no memory left; where KVM never works, each try costs whoever starts a VM up to a minute.
const doubtAfter = time.Hour

// Prover decides between KVM and TCG for one VMM: KVM if the host looks able to and a kernel
// has then been seen to boot with it. That boot is remembered for as long as the host's boot,
// the VMM and the kernel stay the same; one that failed is made again after a while.
type Prover struct {
	Machines hypervisor.Hypervisor
	Program  func() string // of the VMM: a path, or a name to be looked up
	Cache    string        // file that remembers; beside it the proof has its directory

	deciding sync.Mutex // who comes second finds the answer in the cache
}

// Decide decides with a kernel.
func (p *Prover) Decide(ctx context.Context, kernel string) (Verdict, error) {
	p.deciding.Lock()
	defer p.deciding.Unlock()
	return p.decide(ctx, host.ProbeKVM("/"), kernel, func(ctx context.Context) error {
		return Boot(ctx, p.Machines, hypervisor.KVM, kernel, p.Cache+".proof")
	})
}

// proven is what the cache holds.
type proven struct {
	Key     string  `json:"key"`
	Verdict Verdict `json:"verdict"`
}

func (p *Prover) decide(ctx context.Context, kvm host.KVM, kernel string, prove func(context.Context) error) (Verdict, error) {
	if !kvm.Usable {
		return Verdict{Accel: hypervisor.TCG, Reason: kvm.Reason}, nil
	}
	key, err := proofKey(p.Program(), kernel)
	if err != nil {
		return Verdict{}, err
	}
	if known := p.known(); known.Key == key {
		return known.Verdict, nil
	}
	limited, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	v := Verdict{Accel: hypervisor.KVM}
	if err := prove(limited); err != nil {
		if ctx.Err() != nil {
			return Verdict{}, ctx.Err() // the caller gave up: that proves nothing
		}
		v = Verdict{Accel: hypervisor.TCG, Reason: "the host offers KVM, but a test boot with it failed: " + err.Error()}
	}
	b, err := json.Marshal(proven{key, v})
	if err != nil {
		return Verdict{}, err
	}
	if err := os.MkdirAll(filepath.Dir(p.Cache), 0o700); err != nil {
		return Verdict{}, err
	}
	if err := renameio.WriteFile(p.Cache, b, 0o600); err != nil {
		return Verdict{}, fmt.Errorf("remember how KVM did: %w", err)
	}
	return v, nil
}

// known is what the cache holds. One that can't be read is one that knows nothing.
func (p *Prover) known() (known proven) {
	info, err := os.Stat(p.Cache)
	if err != nil {
		return proven{}
	}
	b, err := os.ReadFile(p.Cache)
	if err != nil || json.Unmarshal(b, &known) != nil || known.failed() && time.Since(info.ModTime()) > doubtAfter {
		return proven{}
	}
	return known
}

func (p proven) failed() bool { return p.Verdict.Accel != hypervisor.KVM }

// Doubt forgets a proof that failed: the next decision makes it again.
func (p *Prover) Doubt() error {
	p.deciding.Lock()
	defer p.deciding.Unlock()
	if known := p.known(); known.Key == "" || !known.failed() {
		return nil
	}
	return os.Remove(p.Cache)
}

// proofKey changes when a proof has to be made again.
func proofKey(program, kernel string) (string, error) {
	boot, err := host.BootID()
	if err != nil {
		return "", err
	}
	path, err := host.LookPath(program)
	if err != nil {
		return "", err
	}
	key := boot
	for _, file := range []string{path, kernel} {
		info, err := os.Stat(file)
		if err != nil {
			return "", err
		}
		key += fmt.Sprintf(" %s:%d:%d", file, info.Size(), info.ModTime().UnixNano())
	}
	return key, nil
}

// recordFile holds the hypervisor.Record of the machine that is being proven.
const recordFile = "record.json"

// Boot boots kernel to a userspace that does nothing but say that it is there and restart, and
// returns nil if it got there. dir is for the machine alone: it is made and removed here,
// after whatever a daemon that died during its proof has left in it, the machine included.
func Boot(ctx context.Context, h hypervisor.Hypervisor, accel hypervisor.Accel, kernel, dir string) (err error) {
	if err := clearAway(ctx, dir); err != nil {
		return fmt.Errorf("clear an earlier test boot away: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	initramfs := filepath.Join(dir, "initramfs")
	if err := os.WriteFile(initramfs, witness(), 0o600); err != nil {
		return err
	}
	m, err := h.Launch(ctx, hypervisor.MachineSpec{
		VMID: "proof", Dir: dir, Accel: accel, CPUs: 1, MemoryBytes: 256 << 20, Kernel: kernel, Initramfs: initramfs,
	})
	if err != nil {
		return err
	}
	defer m.Close()
	record, err := json.Marshal(m.Record())
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, recordFile), record, 0o600)
	}
	if err != nil {
		return errors.Join(err, m.Kill(context.WithoutCancel(ctx)))
	}
	select {
	case <-m.Done():
	case <-ctx.Done():
		return errors.Join(errors.New("the kernel did not boot in time"), m.Kill(context.WithoutCancel(ctx)))
	}
	// A kernel that crashes restarts too.
	log, err := m.Console().Log(ctx, false)
	if err != nil {
		return err
	}
	defer log.Close()
	said, err := io.ReadAll(log)
	if err == nil && !strings.Contains(string(said), testimony) {
		err = errors.New("the test machine did not get to its userspace: " + m.Exit().Reason)
	}
	return err
}

// clearAway ends a machine left in dir and removes dir.
func clearAway(ctx context.Context, dir string) error {
	var record hypervisor.Record
	if b, err := os.ReadFile(filepath.Join(dir, recordFile)); err == nil && json.Unmarshal(b, &record) == nil {
		if err := record.Process.Kill(ctx); err != nil {
			return err
		}
	}
	return os.RemoveAll(dir)
}
