package qemu

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// recorded builds a stream as QEMU writes one.
type recorded struct{ bytes.Buffer }

func (r *recorded) numbers(ns ...any) *recorded {
	for _, n := range ns {
		if err := binary.Write(r, binary.BigEndian, n); err != nil {
			panic(err)
		}
	}
	return r
}

func (r *recorded) name(s string) *recorded {
	r.WriteByte(byte(len(s)))
	r.WriteString(s)
	return r
}

func (r *recorded) footer() *recorded { return r.numbers(uint8(sectionFooter), uint32(2)) }

// page writes a page filled with b, or a mark of a page of zeros.
func (r *recorded) page(block string, at uint64, b byte) *recorded {
	kind := uint64(ramPage)
	if b == 0 {
		kind = ramZero
	}
	if block == "" {
		kind |= ramContinue
	}
	r.numbers(at | kind)
	if block != "" {
		r.name(block)
	}
	if b == 0 {
		return r.numbers(uint8(0))
	}
	r.Write(bytes.Repeat([]byte{b}, pageBytes))
	return r
}

const (
	testMemory  = 8 * pageBytes
	testDevices = "\x04 what devices are, for which nothing here has eyes \x00"
)

// begin writes all that comes before the first page.
func (r *recorded) begin() *recorded {
	r.numbers(uint32(streamMagic), uint32(streamVersion), uint8(sectionConfiguration), uint32(3))
	r.WriteString("q35")
	r.numbers(uint8(sectionSub)).name("configuration/capabilities").numbers(uint32(1), uint32(1)).name("x-ignore-shared")
	r.numbers(uint8(sectionStart), uint32(2)).name("ram").numbers(uint32(0), uint32(4), uint64(testMemory+pageBytes)|ramSizes)
	r.name(ramBlock).numbers(uint64(testMemory), uint64(0)).name("rom").numbers(uint64(pageBytes), uint64(0xfffc0000))
	return r.numbers(uint64(ramEnd)).footer()
}

func (r *recorded) part(kind uint8) *recorded { return r.numbers(kind, uint32(2)) }

func (r *recorded) devices() *recorded {
	r.WriteString(testDevices)
	return r
}

func wholeStream() *recorded {
	r := new(recorded).begin()
	r.part(sectionPart).page(ramBlock, 0, 'a').page("", pageBytes, 'b').page("", 2*pageBytes, 0).page("rom", 0, 'r').page(ramBlock, 5*pageBytes, 'c')
	r.numbers(uint64(ramEnd)).footer()
	// The guest has changed these since: one has become zero, one no longer is.
	r.part(sectionEnd).page(ramBlock, pageBytes, 0).page("", 2*pageBytes, 'd').page("", 3*pageBytes, 'e').numbers(uint64(ramEnd)).footer()
	return r.devices()
}

func splitInto(t testing.TB, stream []byte) (memory string, state []byte, err error) {
	t.Helper()
	memory = filepath.Join(t.TempDir(), "memory")
	f, err := os.Create(memory)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(testMemory); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	err = split(bytes.NewReader(stream), f, &out, testMemory)
	return memory, out.Bytes(), err
}

func TestSplitPutsPagesInTheirPlaces(t *testing.T) {
	path, state, err := splitInto(t, wholeStream().Bytes())
	if err != nil {
		t.Fatal(err)
	}
	memory, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []byte{'a', 0, 'd', 'e', 0, 'c', 0, 0} {
		if page := memory[i*pageBytes : (i+1)*pageBytes]; slices.ContainsFunc(page, func(b byte) bool { return b != want }) {
			t.Errorf("page %d is %q…, want %q", i, page[:4], want)
		}
	}
	want := new(recorded).begin()
	want.part(sectionEnd).page("rom", 0, 'r').numbers(uint64(ramEnd)).footer().devices()
	if !bytes.Equal(state, want.Bytes()) {
		t.Errorf("the state is\n%q, want\n%q", state, want.Bytes())
	}
}

func TestSplitRefusesWhatItDoesNotKnow(t *testing.T) {
	whole := wholeStream().Bytes()
	for n := range len(whole) - len(testDevices) {
		if n > 300 && n%pageBytes > 20 { // within a page all cuts are alike
			continue
		}
		if _, _, err := splitInto(t, whole[:n]); err == nil {
			t.Errorf("a stream that is cut after %d bytes was taken", n)
		}
	}
	endless := new(recorded).begin().part(sectionEnd)
	for endless.Len() < maxOther+2*pageBytes+1<<16 {
		endless.page("rom", 0, 'x')
	}
	devices := wholeStream()
	devices.Write(make([]byte, maxState))
	for what, r := range map[string]*recorded{
		"more devices than there are": devices,
		"more ROMs than there are":    endless.numbers(uint64(ramEnd)).footer(),
		"another magic":               new(recorded).numbers(uint32(1), uint32(3)),
		"an unknown section":          new(recorded).numbers(uint32(streamMagic), uint32(streamVersion), uint8(0x55)),
		"beyond memory":               new(recorded).begin().part(sectionEnd).page(ramBlock, testMemory, 'x').numbers(uint64(ramEnd)).footer(),
		"a compressed page":           new(recorded).begin().part(sectionEnd).numbers(uint64(0x100)).name(ramBlock),
		"another section":             new(recorded).begin().numbers(uint8(sectionPart), uint32(7)),
	} {
		if _, _, err := splitInto(t, r.Bytes()); err == nil {
			t.Errorf("%s was taken", what)
		}
	}
}

func FuzzSplit(f *testing.F) {
	f.Add(wholeStream().Bytes())
	f.Fuzz(func(t *testing.T, b []byte) {
		path, _, err := splitInto(t, b)
		if info, statErr := os.Stat(path); statErr != nil || err == nil && info.Size() != testMemory {
			t.Errorf("the memory: %v, %v", info, statErr)
		}
	})
}
