// Package staticelf makes programs of a few instructions: for places where a guest needs one
// and has none. It knows nothing of what they do.
package staticelf

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
)

// load is where the file is mapped.
const load = 0x400000

// Program makes an x86-64 program of machine code, which is entered at its first byte and
// can't be written to.
func Program(code []byte) []byte {
	size := uint64(headers + len(code))
	var file bytes.Buffer
	// Writes of plain structs to a buffer do not fail.
	_ = binary.Write(&file, binary.LittleEndian, elf.Header64{
		Ident: [elf.EI_NIDENT]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
		Type:  uint16(elf.ET_EXEC), Machine: uint16(elf.EM_X86_64), Version: uint32(elf.EV_CURRENT),
		Entry: load + headers, Phoff: uint64(binary.Size(elf.Header64{})),
		Ehsize: uint16(binary.Size(elf.Header64{})), Phentsize: uint16(binary.Size(elf.Prog64{})), Phnum: 1,
	})
	_ = binary.Write(&file, binary.LittleEndian, elf.Prog64{
		Type: uint32(elf.PT_LOAD), Flags: uint32(elf.PF_R | elf.PF_X),
		Vaddr: load, Paddr: load, Filesz: size, Memsz: size, Align: 0x1000,
	})
	file.Write(code)
	return file.Bytes()
}

// headers is the size of what precedes the code: a Header64 and a Prog64.
const headers = 64 + 56

// Address is where the byte of the code at an offset is when the program runs.
func Address(offset int) uint32 { return load + headers + uint32(offset) }
