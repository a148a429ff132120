package kernel

import (
	"bytes"
	"compress/gzip"
	"debug/elf"
	"encoding/binary"
	"math/rand"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/ulikunitz/xz/lzma"
)

const testVersion = "6.1.0-99-test-amd64"

// elfSpec describes a kernel for tests. The zero value is a good one.
type elfSpec struct {
	machine elf.Machine // x86-64 if 0
	noNote  bool        // no PVH entry point
	version string      // testVersion if ""
}

// makeELF makes an ELF file with a PVH note, a banner and some code.
func makeELF(s elfSpec) []byte {
	if s.machine == 0 {
		s.machine = elf.EM_X86_64
	}
	if s.version == "" {
		s.version = testVersion
	}
	le := binary.LittleEndian
	var note []byte
	if !s.noNote {
		note = le.AppendUint32(nil, 4)
		note = le.AppendUint32(note, 4)
		note = le.AppendUint32(note, xenPhys32Entry)
		note = append(note, "Xen\x00"...)
		note = le.AppendUint32(note, 0x1000000)
	}
	// Calls are what the x86 filter of xz changes.
	var code []byte
	for i := range 400 {
		code = append(le.AppendUint32(append(code, 0xe8), uint32(0x1000-5*i)), 0x90, byte(i))
	}
	code = append(code, "Linux version %s (%s)\x00Linux version "+s.version+" (builder@host) #1 SMP\n\x00"...)

	const headers = 64 + 2*56
	var b bytes.Buffer
	write := func(v any) {
		if err := binary.Write(&b, le, v); err != nil {
			panic(err)
		}
	}
	h := elf.Header64{
		Ident: [16]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), 1},
		Type:  uint16(elf.ET_EXEC), Machine: uint16(s.machine), Version: 1, Entry: 0x1000000, Phoff: 64, Ehsize: 64, Phentsize: 56, Phnum: 2, Shentsize: 64,
	}
	write(h)
	write(elf.Prog64{Type: uint32(elf.PT_LOAD), Off: headers + uint64(len(note)), Filesz: uint64(len(code)), Memsz: uint64(len(code))})
	write(elf.Prog64{Type: uint32(elf.PT_NOTE), Off: headers, Filesz: uint64(len(note)), Memsz: uint64(len(note))})
	b.Write(note)
	b.Write(code)
	return b.Bytes()
}

// makeBzImage wraps a payload as Linux does.
func makeBzImage(payload []byte) []byte {
	const sects, offset = 3, 0x40
	image := make([]byte, (sects+1)*512+offset)
	le := binary.LittleEndian
	image[offSetupSects] = sects
	le.PutUint16(image[offBootFlag:], 0xaa55)
	copy(image[offMagic:], "HdrS")
	le.PutUint16(image[offVersion:], 0x20f)
	le.PutUint32(image[offPayload:], offset)
	le.PutUint32(image[offPayloadLength:], uint32(len(payload)))
	return append(append(image, payload...), "what follows the payload"...)
}

func withSize(payload []byte, size int) []byte {
	return binary.LittleEndian.AppendUint32(bytes.Clone(payload), uint32(size))
}

func gzipped(t testing.TB, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// payloads compresses b in every way that a kernel may be, where this code can; the
// others are fixtures of the same b, made by the programs that the kernel's build calls.
func payloads(t testing.TB, b []byte) map[string][]byte {
	t.Helper()
	out := map[string][]byte{"gzip": gzipped(t, b)}

	var l bytes.Buffer
	lw := lz4.NewWriter(&l)
	if err := lw.Apply(lz4.LegacyOption(true)); err != nil {
		t.Fatal(err)
	}
	if _, err := lw.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := lw.Close(); err != nil {
		t.Fatal(err)
	}
	out["lz4"] = withSize(l.Bytes(), len(b))

	zw, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	out["zstd"] = withSize(zw.EncodeAll(b, nil), len(b))

	var m bytes.Buffer
	mw, err := lzma.NewWriter(&m)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := mw.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := mw.Close(); err != nil {
		t.Fatal(err)
	}
	out["lzma"] = withSize(m.Bytes(), len(b))
	return out
}

func TestExtractVmlinux(t *testing.T) {
	want := makeELF(elfSpec{})
	all := payloads(t, want)
	for name, file := range map[string]string{"xz with the x86 filter": "vmlinux.xz", "bzip2": "vmlinux.bz2", "lzma of xz-utils": "vmlinux.lzma"} {
		b, err := os.ReadFile(filepath.Join("testdata", file))
		if err != nil {
			t.Fatal(err)
		}
		all[name] = withSize(b, len(want))
	}
	for name, payload := range all {
		t.Run(name, func(t *testing.T) {
			got, err := ExtractVmlinux(makeBzImage(payload))
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, want) {
				t.Errorf("%d bytes came out that differ from the %d that went in", len(got), len(want))
			}
		})
	}
	t.Run("vmlinux", func(t *testing.T) {
		got, err := ExtractVmlinux(want)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("an ELF file: %d bytes, %v", len(got), err)
		}
	})
	if got := kernelVersion(want); got != testVersion {
		t.Errorf("version is %q", got)
	}
}

func TestExtractVmlinuxRefuses(t *testing.T) {
	good := makeELF(elfSpec{})
	image := makeBzImage(gzipped(t, good))
	put := func(b []byte, at int, s string) []byte {
		b = bytes.Clone(b)
		copy(b[at:], s)
		return b
	}
	random := make([]byte, 8192)
	rand.New(rand.NewSource(1)).Read(random)
	bigDict := payloads(t, good)["lzma"]
	binary.LittleEndian.PutUint32(bigDict[1:], 0xff000000)
	bombs := payloads(t, make([]byte, 16<<20))

	for _, c := range []struct {
		name  string
		image []byte
		want  string
	}{
		{"empty", nil, "too short"},
		{"text", []byte("#!/bin/sh\nexit 0\n"), "too short"},
		{"garbage", random, "neither a bzImage"},
		{"no HdrS", put(image, offMagic, "Head"), "neither a bzImage"},
		{"old protocol", put(image, offVersion, "\x03\x02"), "older than 2.08"},
		{"header only", image[:0x300], "truncated"},
		{"truncated payload", image[:len(image)-200], "truncated"},
		{"no payload", put(image, offPayloadLength, "\x00\x00\x00\x00"), "names no payload"},
		{"payload far away", put(image, offPayload, "\xff\xff\xff\xff"), "truncated"},
		{"unknown compression", makeBzImage([]byte("not compressed at all")), "not compressed in a known way"},
		{"lzo", makeBzImage([]byte("\x89LZO\x00\r\n\x1a\n12345678")), "LZO"},
		{"damaged gzip", makeBzImage(put(gzipped(t, good), 40, "xxxxxxxxxx")), "damaged"},
		{"bomb", makeBzImage(withSize(trim4(bombs["zstd"]), 1000)), "more than the 1000 bytes it claims"},
		{"lz4 bomb", makeBzImage(withSize(trim4(bombs["lz4"]), 1000)), "more than the 1000 bytes it claims"},
		{"less than claimed", makeBzImage(withSize(trim4(payloads(t, good)["zstd"]), len(good)+1)), "and not to the"},
		{"claims gigabytes", makeBzImage(withSize(trim4(payloads(t, good)["zstd"]), 3<<30)), "more than any kernel"},
		{"huge dictionary", makeBzImage(bigDict), "dictionary of 4080 MiB"},
		{"arm64 Image", put(make([]byte, 4096), 56, "ARM\x64"), "arm64"},
		{"riscv Image", put(make([]byte, 4096), 48, "RISCV\x00\x00\x00"), "RISC-V"},
		{"arm64 EFI zboot", put(make([]byte, 4096), 0, "MZ\x00\x00zimg"), "zboot"},
		{"arm64 ELF", makeELF(elfSpec{machine: elf.EM_AARCH64}), "arm64"},
		{"arm64 ELF inside", makeBzImage(gzipped(t, makeELF(elfSpec{machine: elf.EM_AARCH64}))), "arm64"},
		{"no PVH", makeELF(elfSpec{noNote: true}), "no PVH entry point"},
		{"truncated ELF", good[:len(good)-1], "reaches beyond its end"},
		{"half an ELF header", good[:30], "damaged or truncated"},
		{"no ELF inside", makeBzImage(gzipped(t, []byte(strings.Repeat("text ", 100)))), "damaged or truncated"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := ExtractVmlinux(c.image)
			if err == nil {
				t.Fatalf("accepted: %d bytes", len(got))
			}
			if !strings.Contains(err.Error(), c.want) {
				t.Errorf("error is %q, without %q", err, c.want)
			}
		})
	}
}

func trim4(b []byte) []byte { return b[:len(b)-4] }

// TestDebianKernel takes the kernel of the runtime bundle's making, or this host's own.
func TestDebianKernel(t *testing.T) {
	found, err := filepath.Glob("/boot/vmlinuz-*-amd64")
	if err != nil || len(found) == 0 {
		t.Skip("SKIP: this host has no Debian kernel in /boot")
	}
	image, err := os.ReadFile(found[0])
	if err != nil {
		t.Skip("SKIP: the kernel in /boot may only be read by root")
	}
	vmlinux, err := ExtractVmlinux(image)
	if err != nil {
		t.Fatal(err)
	}
	if v := kernelVersion(vmlinux); !strings.HasSuffix(found[0], "vmlinuz-"+v) {
		t.Errorf("the version of %s is %q", found[0], v)
	}
}

func FuzzExtractVmlinux(f *testing.F) {
	good := makeELF(elfSpec{})
	f.Add(good)
	for _, payload := range payloads(f, good) {
		f.Add(makeBzImage(payload))
	}
	for _, file := range []string{"vmlinux.xz", "vmlinux.bz2", "vmlinux.lzma"} {
		b, err := os.ReadFile(filepath.Join("testdata", file))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(makeBzImage(withSize(b, len(good))))
	}
	f.Fuzz(func(t *testing.T, image []byte) {
		vmlinux, err := ExtractVmlinux(image)
		if err == nil && checkELF(vmlinux) != nil {
			t.Error("what came out is no kernel")
		}
		kernelVersion(vmlinux)
	})
}

func FuzzDecompress(f *testing.F) {
	for _, payload := range payloads(f, makeELF(elfSpec{})) {
		f.Add(payload)
	}
	f.Fuzz(func(t *testing.T, payload []byte) {
		if len(payload) < 8 {
			return
		}
		claim := int(binary.LittleEndian.Uint32(payload[len(payload)-4:]))
		if out, err := decompress(payload); err == nil && len(out) != claim {
			t.Errorf("%d bytes came out, %d were claimed", len(out), claim)
		}
	})
}
