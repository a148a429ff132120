package qemu

import (
	"bytes"
	"context"
	"debug/elf"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/cavaliergopher/cpio"
	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"

	"banger/internal/host"
	"banger/internal/hypervisor"
)

// proofLimit bounds the boot that proves KVM. On real hardware it takes half a second; in
// a virtual machine that itself is translated five, and several times that on a busy host.
const proofLimit = 60 * time.Second

// Verdict is how machines are to be run, and why not with KVM.
type Verdict struct {
	Accel  hypervisor.Accel `json:"accel"`
	Reason string           `json:"reason,omitempty"` // why it is not KVM
}

// Choose decides between KVM and TCG: KVM if the host looks able to and the given kernel
// has then been seen to boot with it. That boot is remembered in the file cache for as
// long as the host's boot, QEMU and the kernel stay the same.
func (h *Hypervisor) Choose(ctx context.Context, kernel, cache string) (Verdict, error) {
	h.choosing.Lock() // who comes second finds the answer in the cache
	defer h.choosing.Unlock()
	return choose(ctx, host.ProbeKVM("/"), h.binary, kernel, cache, func(ctx context.Context) error {
		return h.Prove(ctx, hypervisor.KVM, kernel, cache+".proof")
	})
}

// proven is what the cache holds.
type proven struct {
	Key     string  `json:"key"`
	Verdict Verdict `json:"verdict"`
}

func choose(ctx context.Context, kvm host.KVM, program, kernel, cache string, prove func(context.Context) error) (Verdict, error) {
	if !kvm.Usable {
		return Verdict{Accel: hypervisor.TCG, Reason: kvm.Reason}, nil
	}
	key, err := proofKey(program, kernel)
	if err != nil {
		return Verdict{}, err
	}
	var known proven
	// A cache that can't be read is one that knows nothing.
	if b, err := os.ReadFile(cache); err == nil && json.Unmarshal(b, &known) == nil && known.Key == key {
		return known.Verdict, nil
	}
	limited, cancel := context.WithTimeout(ctx, proofLimit)
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
	if err := os.MkdirAll(filepath.Dir(cache), 0o700); err != nil {
		return Verdict{}, err
	}
	if err := renameio.WriteFile(cache, b, 0o600); err != nil {
		return Verdict{}, fmt.Errorf("remember how KVM did: %w", err)
	}
	return v, nil
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

// Prove boots kernel to a userspace that does nothing but power the machine off, and
// returns nil if it got there. dir is for the machine alone: it is made and removed here,
// after whatever a daemon that died during its proof has left in it, the machine included.
func (h *Hypervisor) Prove(ctx context.Context, accel hypervisor.Accel, kernel, dir string) (err error) {
	if err := clearProof(ctx, dir); err != nil {
		return fmt.Errorf("clear an earlier test boot away: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	initramfs := filepath.Join(dir, "initramfs")
	if err := os.WriteFile(initramfs, powerOffInitramfs(), 0o600); err != nil {
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
		err = os.WriteFile(filepath.Join(dir, proofRecord), record, 0o600)
	}
	if err != nil {
		return errors.Join(err, m.Kill(context.WithoutCancel(ctx)))
	}
	select {
	case <-m.Done():
	case <-ctx.Done():
		return errors.Join(errors.New("the kernel did not boot in time"), m.Kill(context.WithoutCancel(ctx)))
	}
	// A kernel that crashes ends in a reset; only powerOff powers off.
	if exit := m.Exit(); exit.Reason != poweredOff {
		return errors.New("the test machine did not power off: " + exit.Reason)
	}
	return nil
}

// proofRecord holds the hypervisor.Record of the machine that is being proven.
const proofRecord = "record.json"

// clearProof ends a machine left in dir and removes dir.
func clearProof(ctx context.Context, dir string) error {
	var record hypervisor.Record
	if b, err := os.ReadFile(filepath.Join(dir, proofRecord)); err == nil && json.Unmarshal(b, &record) == nil {
		if left, err := record.Process.Open(); err == nil {
			defer left.Close()
			_ = left.Signal(unix.SIGKILL) // if it fails, the process has ended
			if err := left.Wait(ctx); err != nil {
				return err
			}
		}
	}
	return os.RemoveAll(dir)
}

// powerOff is a whole x86-64 program: reboot(LINUX_REBOOT_MAGIC1, MAGIC2, POWER_OFF).
const powerOff = "\xbf\xad\xde\xe1\xfe" + // mov edi, 0xfee1dead
	"\xbe\x69\x19\x12\x28" + // mov esi, 0x28121969
	"\xba\xdc\xfe\x21\x43" + // mov edx, 0x4321fedc
	"\xb8\xa9\x00\x00\x00" + // mov eax, 169
	"\x0f\x05" + // syscall
	"\xeb\xfe" // it does not return; if it does, wait here

// powerOffInitramfs is a cpio archive with powerOff as /init.
func powerOffInitramfs() []byte {
	const load = 0x400000 // where the file is mapped
	var file bytes.Buffer
	headers := binary.Size(elf.Header64{}) + binary.Size(elf.Prog64{})
	size := uint64(headers + len(powerOff))
	// Writes of plain structs to a buffer do not fail, here and below.
	_ = binary.Write(&file, binary.LittleEndian, elf.Header64{
		Ident: [elf.EI_NIDENT]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
		Type:  uint16(elf.ET_EXEC), Machine: uint16(elf.EM_X86_64), Version: uint32(elf.EV_CURRENT),
		Entry: load + uint64(headers), Phoff: uint64(binary.Size(elf.Header64{})),
		Ehsize: uint16(binary.Size(elf.Header64{})), Phentsize: uint16(binary.Size(elf.Prog64{})), Phnum: 1,
	})
	_ = binary.Write(&file, binary.LittleEndian, elf.Prog64{
		Type: uint32(elf.PT_LOAD), Flags: uint32(elf.PF_R | elf.PF_X),
		Vaddr: load, Paddr: load, Filesz: size, Memsz: size, Align: 0x1000,
	})
	file.WriteString(powerOff)

	var archive bytes.Buffer
	w := cpio.NewWriter(&archive)
	_ = w.WriteHeader(&cpio.Header{Name: "init", Mode: cpio.TypeReg | 0o755, Links: 1, Size: int64(file.Len())})
	_, _ = w.Write(file.Bytes())
	_ = w.Close()
	return archive.Bytes()
}
