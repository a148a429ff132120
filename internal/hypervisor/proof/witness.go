package proof

import (
	"bytes"
	"encoding/binary"

	"github.com/cavaliergopher/cpio"

	"banger/internal/staticelf"
)

// testimony is what the witness says: on the kernel's log, at the level that every console
// shows, and which the kernel writes out before it goes on.
const testimony = "banger: userspace runs"

// witness is a cpio archive with a program as /init that gives its testimony and restarts
// the machine.
func witness() []byte {
	const node = "/log\x00" // a device of its own, for there is no /dev
	text := "<0>" + testimony + "\n"
	program := func(data uint32) []byte {
		var code bytes.Buffer
		mov := func(register byte, value uint32) { // edi, esi, edx or eax
			code.WriteByte(register)
			_ = binary.Write(&code, binary.LittleEndian, value) // to a buffer
		}
		const edi, esi, edx, eax = 0xbf, 0xbe, 0xba, 0xb8
		call := func(number uint32) {
			mov(eax, number)
			code.WriteString("\x0f\x05") // syscall
		}
		mov(edi, data) // mknod(node, S_IFCHR|0600, the kernel's log: 1, 11)
		mov(esi, 0o20600)
		mov(edx, 1<<8|11)
		call(133)
		mov(edi, data) // open(node, O_WRONLY)
		mov(esi, 1)
		call(2)
		code.WriteString("\x89\xc7")     // mov edi, eax
		mov(esi, data+uint32(len(node))) // write(it, text)
		mov(edx, uint32(len(text)))      //
		call(1)                          //
		mov(edi, 0xfee1dead)             // reboot(MAGIC1, MAGIC2, RESTART)
		mov(esi, 672274793)              //
		mov(edx, 0x01234567)             //
		call(169)                        //
		code.WriteString("\xeb\xfe")     // it does not return; if it does, wait here
		return code.Bytes()
	}
	size := len(program(0)) // the same wherever the data is
	init := staticelf.Program(append(program(staticelf.Address(size)), node+text...))

	var archive bytes.Buffer
	w := cpio.NewWriter(&archive) // to a buffer, which does not fail
	_ = w.WriteHeader(&cpio.Header{Name: "init", Mode: cpio.TypeReg | 0o755, Links: 1, Size: int64(len(init))})
	_, _ = w.Write(init)
	_ = w.Close()
	return archive.Bytes()
}
