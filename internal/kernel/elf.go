package kernel

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

const (
	// The note that marks a kernel which a hypervisor may enter in 32-bit protected mode
	// (PVH), include/xen/interface/elfnote.h.
	xenNoteName      = "Xen"
	xenPhys32Entry   = 18
	maxNoteBytes     = 1 << 20
	linuxBanner      = "Linux version "
	maxVersionLength = 64
)

// checkELF returns nil for a kernel that can be booted directly, else why it can't.
func checkELF(image []byte) error {
	f, err := elf.NewFile(bytes.NewReader(image))
	if err != nil {
		return fmt.Errorf("its ELF file is damaged or truncated: %w", err)
	}
	if f.Machine != elf.EM_X86_64 || f.Class != elf.ELFCLASS64 || f.Data != elf.ELFDATA2LSB {
		return fmt.Errorf("it is for %s (%s), not x86-64", machineName(f.Machine), f.Class)
	}
	if f.Type != elf.ET_EXEC && f.Type != elf.ET_DYN {
		return fmt.Errorf("it is an ELF file of type %s, not a kernel", f.Type)
	}
	loads, entry := 0, false
	for _, p := range f.Progs {
		if p.Off+p.Filesz < p.Off || p.Off+p.Filesz > uint64(len(image)) {
			return errors.New("it is truncated: a segment reaches beyond its end")
		}
		switch p.Type {
		case elf.PT_LOAD:
			loads++
		case elf.PT_NOTE:
			notes, err := io.ReadAll(io.LimitReader(p.Open(), maxNoteBytes))
			if err != nil {
				return fmt.Errorf("read its notes: %w", err)
			}
			entry = entry || hasPVHEntry(notes)
		}
	}
	if loads == 0 {
		return errors.New("it has nothing to load")
	}
	if !entry {
		return errors.New("it has no PVH entry point (CONFIG_PVH), so it can't be booted directly")
	}
	return nil
}

func machineName(m elf.Machine) string {
	switch m {
	case elf.EM_AARCH64:
		return "arm64"
	case elf.EM_386:
		return "32-bit x86"
	case elf.EM_RISCV:
		return "RISC-V"
	case elf.EM_X86_64:
		return "x86-64"
	}
	return m.String()
}

// hasPVHEntry looks for the PVH note among ELF notes: each is three uint32 (length of
// the name, length of the content, type), then both, each padded to four bytes.
func hasPVHEntry(notes []byte) bool {
	le := binary.LittleEndian
	for len(notes) >= 12 {
		nameLen, descLen, typ := uint64(le.Uint32(notes)), uint64(le.Uint32(notes[4:])), le.Uint32(notes[8:])
		notes = notes[12:]
		descAt := (nameLen + 3) &^ 3
		next := (descAt + descLen + 3) &^ 3
		if descAt+descLen > uint64(len(notes)) {
			return false
		}
		if typ == xenPhys32Entry && string(bytes.TrimRight(notes[:nameLen], "\x00")) == xenNoteName && descLen >= 4 {
			return true
		}
		if next > uint64(len(notes)) {
			return false
		}
		notes = notes[next:]
	}
	return false
}

// kernelVersion finds the release in a kernel's banner ("Linux version 6.1.0-56-cloud-amd64
// (…"), or returns "".
func kernelVersion(vmlinux []byte) string {
	for rest := vmlinux; ; {
		i := bytes.Index(rest, []byte(linuxBanner))
		if i < 0 {
			return ""
		}
		rest = rest[i+len(linuxBanner):]
		end := bytes.IndexByte(rest[:min(len(rest), maxVersionLength)], ' ')
		if end > 0 && isVersion(string(rest[:end])) {
			return string(rest[:end])
		}
	}
}

// isVersion reports whether s can be a kernel's release and a directory's name.
func isVersion(s string) bool {
	if s == "" || len(s) > maxVersionLength || s[0] < '0' || s[0] > '9' {
		return false
	}
	for _, c := range s {
		switch {
		case c >= '0' && c <= '9', c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c == '.', c == '-', c == '_', c == '+', c == '~':
		default:
			return false
		}
	}
	return true
}
