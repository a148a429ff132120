package jail

import (
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	loopIoctls = 0x4c00  // and the 255 after it: those of loop devices
	foreign    = 1 << 30 // of the number of a system call: one of x32

	// Where struct seccomp_data has what a filter looks at.
	atNumber  = 0
	atArch    = 4
	atRequest = 16 + 8 // the second argument's lower half, which is all that ioctl reads
)

// natives are the kernel's names for the system calls of the programs that are confined here.
var natives = map[string]uint32{"amd64": unix.AUDIT_ARCH_X86_64, "arm64": unix.AUDIT_ARCH_AARCH64}

// forbidLoops keeps the process, and what it becomes, from changing loop devices. It may be given
// one to read, and whoever can do that can give it another file (LOOP_CHANGE_FD): the kernel asks
// for no privilege, and others read from the same device.
func forbidLoops() error {
	load := func(at uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: at}
	}
	jump := func(how uint16, k uint32, yes, no uint8) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_JMP | how | unix.BPF_K, Jt: yes, Jf: no, K: k}
	}
	end := func(k uint32) unix.SockFilter { return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: k} }
	filter := []unix.SockFilter{
		load(atArch),
		jump(unix.BPF_JEQ, natives[runtime.GOARCH], 0, 7), // no other, by which the rest could be got around
		load(atNumber),
		jump(unix.BPF_JGE, foreign, 5, 0),
		jump(unix.BPF_JEQ, unix.SYS_IOCTL, 0, 3),
		load(atRequest),
		{Code: unix.BPF_ALU | unix.BPF_AND | unix.BPF_K, K: 0xffffff00},
		jump(unix.BPF_JEQ, loopIoctls, 1, 0),
		end(unix.SECCOMP_RET_ALLOW),
		end(unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)),
	}
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	if err := unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&program)), 0, 0); err != nil {
		return fmt.Errorf("forbid changes of loop devices: %w", err)
	}
	return nil
}
