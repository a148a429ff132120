package qemu

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// What QEMU writes when a machine is saved is a stream of sections (migration/savevm.c). One
// kind of section, called "ram", carries the pages of memory and may come any number of
// times; all others follow the last of those. The stream is taken apart while it comes: the
// pages of the guest's memory go to their places in a file that can be mapped, and
// everything else becomes a stream that QEMU loads as one of a machine whose memory is
// elsewhere. All numbers are big-endian.
const (
	streamMagic   = 0x5145564d // "QEVM"
	streamVersion = 3

	sectionStart         = 0x01
	sectionPart          = 0x02
	sectionEnd           = 0x03
	sectionSub           = 0x05
	sectionConfiguration = 0x07
	sectionCommand       = 0x08
	sectionFooter        = 0x7e

	// The low bits of a word of a section "ram"; the others are an address.
	ramZero     = 0x02
	ramSizes    = 0x04
	ramPage     = 0x08
	ramEnd      = 0x10
	ramContinue = 0x20 // of the block that the last page was of

	pageBytes = 4096
	maxName   = 256

	// maxOther bounds what of a stream is held in memory: a real one has a few megabytes of
	// ROMs and tables at most, and the QEMU that writes it may be its guest's by now.
	maxOther = 64 << 20

	// maxState bounds what is written of it beside the guest's memory, for the same reason.
	maxState = 2 * maxOther
)

// ramBlock is QEMU's name for the guest's memory; ROMs and the like have others.
const ramBlock = "pc.ram"

// splitter takes a stream apart. Its first error ends all.
type splitter struct {
	in     *bufio.Reader
	state  *bufio.Writer
	memory pages
	other  []byte // pages that are not of the guest's memory, as QEMU wrote them
	block  string // that the last page was of
	ram    uint32 // number of the sections "ram"
	err    error
}

// split reads a stream to its end.
func split(in io.Reader, memory *os.File, state io.Writer, memoryBytes int64) error {
	s := &splitter{in: bufio.NewReaderSize(in, 1<<20), state: bufio.NewWriter(&bounded{state, maxState}), memory: newPages(memory, memoryBytes)}
	s.header()
	for last := false; !last && s.err == nil; {
		last = s.section()
	}
	if s.err != nil {
		return fmt.Errorf("take apart what QEMU saves: %w", s.err)
	}
	_, err := s.in.WriteTo(s.state)
	return errors.Join(err, s.memory.flush(), s.state.Flush())
}

// bounded takes so many bytes and no more.
type bounded struct {
	to   io.Writer
	left int
}

func (b *bounded) Write(p []byte) (int, error) {
	if b.left -= len(p); b.left < 0 {
		return 0, fmt.Errorf("it has more than %d MiB beside the guest's memory", maxState>>20)
	}
	return b.to.Write(p)
}

func (s *splitter) fail(format string, a ...any) {
	if s.err == nil {
		s.err = fmt.Errorf(format, a...)
	}
}

// read takes n bytes of the stream, which stay what they are until the next are read.
func (s *splitter) read(n int) []byte {
	if s.err == nil {
		var b []byte
		if b, s.err = s.in.Peek(n); s.err == nil {
			_, s.err = s.in.Discard(n)
			return b
		}
	}
	return make([]byte, n)
}

// keep takes n bytes and passes them on.
func (s *splitter) keep(n int) []byte {
	b := s.read(n)
	if s.err == nil {
		_, s.err = s.state.Write(b)
	}
	return b
}

func (s *splitter) keep32() uint32 { return binary.BigEndian.Uint32(s.keep(4)) }

// keepName takes a string with its length before it, in one byte.
func (s *splitter) keepName() string { return string(s.keep(int(s.keep(1)[0]))) }

func (s *splitter) header() {
	if magic, version := s.keep32(), s.keep32(); s.err == nil && (magic != streamMagic || version != streamVersion) {
		s.fail("it begins with %#x, %d", magic, version)
	}
}

// section takes one section that comes before those of devices, or the last of memory.
func (s *splitter) section() (last bool) {
	switch kind := s.read(1)[0]; {
	case s.err != nil:
	case kind == sectionConfiguration:
		s.put(kind)
		s.configuration()
	case kind == sectionCommand:
		s.put(kind)
		s.keep(2)
		s.keep(int(binary.BigEndian.Uint16(s.keep(2))))
	case kind == sectionStart:
		s.put(kind)
		s.start()
	case kind == sectionPart || kind == sectionEnd:
		if number := binary.BigEndian.Uint32(s.read(4)); s.err == nil && number != s.ram {
			s.fail("it has a part of section %d, which is not memory", number)
		}
		s.pages()
		s.read(5) // the footer
		if kind == sectionEnd {
			s.end()
		}
		return kind == sectionEnd
	default:
		s.fail("it has a section of kind %d before the end of memory", kind)
	}
	return false
}

func (s *splitter) put(b ...byte) {
	if s.err == nil {
		_, s.err = s.state.Write(b)
	}
}

// configuration passes on the machine's name and what features of the stream are in use.
func (s *splitter) configuration() {
	n := s.keep32()
	if n > maxName {
		s.fail("the machine's name has %d bytes", n)
		return
	}
	s.keep(int(n))
	for s.err == nil {
		if next, err := s.in.Peek(1); err != nil || next[0] != sectionSub {
			return
		}
		s.keep(1)
		name := s.keepName()
		s.keep32() // its version
		if name != "configuration/capabilities" {
			s.fail("it has %q", name)
			return
		}
		for n := s.keep32(); n > 0 && s.err == nil; n-- {
			s.keepName()
		}
	}
}

// start passes on the section that lists the blocks of memory.
func (s *splitter) start() {
	s.ram = s.keep32()
	if name := s.keepName(); s.err == nil && name != "ram" {
		s.fail("its first section is %q and not memory", name)
	}
	s.keep(8) // instance and version
	word := binary.BigEndian.Uint64(s.keep(8))
	if s.err == nil && word%pageBytes != ramSizes {
		s.fail("it does not list its memory: %#x", word)
	}
	for left := int64(word &^ (pageBytes - 1)); left > 0 && s.err == nil; {
		s.keepName()
		left -= int64(binary.BigEndian.Uint64(s.keep(8)))
		s.keep(8) // where the guest sees it
	}
	if word := binary.BigEndian.Uint64(s.keep(8)); s.err == nil && word != ramEnd {
		s.fail("the list of its memory ends with %#x", word)
	}
	s.keep(5) // the footer
}

// pages takes the pages of one section.
func (s *splitter) pages() {
	for s.err == nil {
		word := binary.BigEndian.Uint64(s.read(8))
		flags, at := word%pageBytes, int64(word&^(pageBytes-1))
		if s.err != nil || flags == ramEnd {
			return
		}
		if flags&ramContinue == 0 {
			s.block = string(s.read(int(s.read(1)[0])))
		}
		var content []byte
		switch flags &^ ramContinue {
		case ramZero:
			content = s.read(1)
		case ramPage:
			content = s.read(pageBytes)
		default:
			s.fail("it has a page of kind %#x", flags)
		}
		if s.err == nil {
			s.page(at, flags&^ramContinue, content)
		}
	}
}

func (s *splitter) page(at int64, kind uint64, content []byte) {
	switch {
	case s.block != ramBlock && len(s.other) > maxOther:
		s.fail("more than %d MiB of it are not the guest's memory", maxOther>>20)
	case s.block != ramBlock:
		s.other = binary.BigEndian.AppendUint64(s.other, uint64(at)|kind)
		s.other = append(append(s.other, byte(len(s.block))), s.block...)
		s.other = append(s.other, content...)
	case kind == ramPage:
		s.err = s.memory.write(at, content)
	case content[0] != 0:
		s.fail("a page is filled with %#x", content[0])
	default:
		s.err = s.memory.zero(at)
	}
}

// end writes one section with the pages that are not the guest's.
func (s *splitter) end() {
	section := func(kind byte) []byte { return binary.BigEndian.AppendUint32([]byte{kind}, s.ram) }
	s.put(section(sectionEnd)...)
	s.put(s.other...)
	s.put(binary.BigEndian.AppendUint64(nil, ramEnd)...)
	s.put(section(sectionFooter)...)
}

// pages is a sparse file of memory. Pages that follow each other are written together.
type pages struct {
	file    *os.File
	bytes   int64
	written []bool // by number of the page
	run     []byte
	at      int64 // of run
}

const maxRun = 256 * pageBytes

func newPages(f *os.File, bytes int64) pages {
	return pages{file: f, bytes: bytes, written: make([]bool, bytes/pageBytes), run: make([]byte, 0, maxRun)}
}

func (p *pages) write(at int64, page []byte) error {
	if at < 0 || at >= p.bytes {
		return fmt.Errorf("a page at %#x is beyond the %d bytes of memory", at, p.bytes)
	}
	if at != p.at+int64(len(p.run)) || len(p.run) == maxRun {
		if err := p.flush(); err != nil {
			return err
		}
		p.at = at
	}
	p.run = append(p.run, page...)
	p.written[at/pageBytes] = true
	return nil
}

// zero makes a page a hole, which it is unless it was written before.
func (p *pages) zero(at int64) error {
	if at < 0 || at >= p.bytes || !p.written[at/pageBytes] {
		return nil
	}
	if err := p.flush(); err != nil {
		return err
	}
	p.written[at/pageBytes] = false
	err := unix.Fallocate(int(p.file.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, at, pageBytes)
	if errors.Is(err, unix.EOPNOTSUPP) {
		_, err = p.file.WriteAt(make([]byte, pageBytes), at)
	}
	return err
}

func (p *pages) flush() error {
	_, err := p.file.WriteAt(p.run, p.at)
	p.at += int64(len(p.run))
	p.run = p.run[:0]
	return err
}
