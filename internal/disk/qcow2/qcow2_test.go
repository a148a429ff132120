package qcow2

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"banger/internal/disk"
	"banger/internal/disk/disktest"
	"banger/internal/errs"
	"banger/internal/host"
)

// qemu runs a program of Debian's qemu-utils.
func qemu(t *testing.T, program string, args ...string) string {
	t.Helper()
	out, err := host.Output(t.Context(), host.Command{Path: program, Args: args})
	if errs.KindOf(err) == errs.Unavailable {
		t.Skipf("SKIP: %s (Debian's qemu-utils) is not installed", program)
	}
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return string(out)
}

// qemuIO uses overlays as QEMU does.
type qemuIO struct{}

func (qemuIO) Read(t *testing.T, a disk.Attached, offset, n int64) []byte {
	t.Helper()
	out := filepath.Join(t.TempDir(), "out")
	qemu(t, "qemu-img", "dd", "-f", "qcow2", "-O", "raw", "bs=512",
		fmt.Sprintf("skip=%d", offset/512), fmt.Sprintf("count=%d", (offset+n)/512), "if="+a.Path, "of="+out)
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (qemuIO) Write(t *testing.T, a disk.Attached, offset, n int64, fill byte) error {
	t.Helper()
	out, err := host.Output(t.Context(), host.Command{Path: "qemu-io", Args: []string{"-f", "qcow2",
		"-c", fmt.Sprintf("write -P %d %d %d", fill, offset, n), "-c", "flush", a.Path}})
	if errs.KindOf(err) == errs.Unavailable {
		t.Skip("SKIP: qemu-io (Debian's qemu-utils) is not installed")
	}
	if err == nil {
		qemu(t, "qemu-img", "check", "-f", "qcow2", a.Path)
	} else {
		err = fmt.Errorf("%w\n%s", err, out)
	}
	return err
}

func (qemuIO) WriteAndDie(t *testing.T, a disk.Attached, offset, n int64, fill byte) {
	t.Helper()
	_, err := host.Output(t.Context(), host.Command{Path: "qemu-io", Args: []string{"-f", "qcow2",
		"-c", fmt.Sprintf("write -P %d %d %d", fill, offset, n), "-c", "flush", "-c", "sigraise 9", a.Path}})
	if e, ok := errors.AsType[*host.ExitError](err); !ok || e.Signal == "" {
		t.Fatalf("qemu-io was to be killed: %v", err)
	}
}

func (qemuIO) Discard(t *testing.T, a disk.Attached, offset, n int64) {
	t.Helper()
	qemu(t, "qemu-io", "-f", "qcow2", "-d", "unmap", "-c", fmt.Sprintf("discard %d %d", offset, n), a.Path)
}

func TestConformance(t *testing.T) {
	disktest.Suite{
		Driver: Driver{}, IO: qemuIO{},
		Small: func(t *testing.T) string { return disktest.MountTmpfs(t, "8m") },
	}.Run(t)
}

// TestQEMUFindsNothingWrong has QEMU's own checker judge fresh overlays of sizes around
// the steps of the tables.
func TestQEMUFindsNothingWrong(t *testing.T) {
	base := filepath.Join(t.TempDir(), "base")
	if err := os.WriteFile(base, make([]byte, 512), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, size := range []int64{512, clusterBytes - 512, clusterBytes, l1Covers - 512, l1Covers, l1Covers + 512,
		(clusterBytes / 8) * l1Covers, (clusterBytes/8)*l1Covers + 512, disk.MaxBytes} {
		dir := t.TempDir()
		v, err := Driver{}.Clone(t.Context(), disk.Base{Path: base, Bytes: 512}, disk.Spec{Home: disk.Home{Dir: dir}, Bytes: size})
		if err != nil {
			t.Fatal(err)
		}
		if out := qemu(t, "qemu-img", "check", v.Path); !strings.Contains(out, "No errors were found") {
			t.Errorf("%d bytes: %s", size, out)
		}
		info := qemu(t, "qemu-img", "info", "--output=json", v.Path)
		for _, want := range []string{
			fmt.Sprintf(`"virtual-size": %d,`, size), `"cluster-size": 131072,`, `"extended-l2": true`,
			`"backing-filename-format": "raw"`, fmt.Sprintf(`"full-backing-filename": %q`, base), `"corrupt": false`,
		} {
			if !strings.Contains(info, want) {
				t.Errorf("%d bytes: no %s in %s", size, want, info)
			}
		}
	}
}

// TestLargestDiskTakesWrites writes at the far end of the largest disk, whose tables are
// the largest, and reads it back.
func TestLargestDiskTakesWrites(t *testing.T) {
	dir := t.TempDir()
	base := filepath.Join(dir, "base")
	if err := os.WriteFile(base, make([]byte, 512), 0o600); err != nil {
		t.Fatal(err)
	}
	v, err := Driver{}.Clone(t.Context(), disk.Base{Path: base, Bytes: 512}, disk.Spec{Home: disk.Home{Dir: dir}, Bytes: disk.MaxBytes})
	if err != nil {
		t.Fatal(err)
	}
	at := int64(disk.MaxBytes - 4096)
	qemu(t, "qemu-io", "-f", "qcow2", "-c", fmt.Sprintf("write -P 7 %d 4096", at), v.Path)
	qemu(t, "qemu-io", "-f", "qcow2", "-c", fmt.Sprintf("read -P 7 %d 4096", at), v.Path)
	qemu(t, "qemu-img", "check", v.Path)
	h, err := ReadHeader(v.Path)
	if err != nil || h.VirtualBytes != disk.MaxBytes || h.Backing != base {
		t.Errorf("%+v, %v", h, err)
	}
}

// image lays an overlay out in memory.
func image(t testing.TB, size int64, backing string) []byte {
	t.Helper()
	pieces, n, err := encode(size, backing, "raw")
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, n)
	for _, p := range pieces {
		copy(b[p.offset:], p.data)
	}
	return b
}

func parseBytes(b []byte) (Header, error) { return parse(bytes.NewReader(b), int64(len(b))) }

func TestParseReadsWhatEncodeWrites(t *testing.T) {
	for _, size := range []int64{512, l1Covers, 5*l1Covers + 512} {
		for _, backing := range []string{"/b", "/" + strings.Repeat("x", maxBackingName-1), "/a b:c,d\n"} {
			h, err := parseBytes(image(t, size, backing))
			if want := (Header{VirtualBytes: size, Backing: backing, BackingFormat: "raw"}); err != nil || h != want {
				t.Errorf("%+v, %v, want %+v", h, err, want)
			}
		}
	}
	if _, _, err := encode(512, "/"+strings.Repeat("x", maxBackingName), "raw"); err == nil {
		t.Error("a name longer than the format's limit was taken")
	}
}

func TestParseRefusesLies(t *testing.T) {
	u32 := func(at int, v uint32) func([]byte) []byte {
		return func(b []byte) []byte { binary.BigEndian.PutUint32(b[at:], v); return b }
	}
	u64 := func(at int, v uint64) func([]byte) []byte {
		return func(b []byte) []byte { binary.BigEndian.PutUint64(b[at:], v); return b }
	}
	for name, lie := range map[string]func([]byte) []byte{
		"magic":                     u32(0, 0x7f454c46),
		"version 2":                 u32(4, 2),
		"name before the end":       u64(8, 96),
		"name beyond the file":      u64(8, math.MaxUint64-8),
		"name not in the header":    u64(8, clusterBytes),
		"no name":                   u32(16, 0),
		"long name":                 u32(16, 1024),
		"name over the cluster":     u64(8, clusterBytes-1),
		"small clusters":            u32(20, 9),
		"huge clusters":             u32(20, 63),
		"no size":                   u64(24, 0),
		"size of half a sector":     u64(24, 256),
		"size beyond the tables":    u64(24, 2*l1Covers),
		"absurd size":               u64(24, 1<<63),
		"encryption":                u32(32, 1),
		"no L1":                     u32(36, 0),
		"huge L1":                   u32(36, math.MaxUint32),
		"L1 in the header":          u64(40, 0),
		"L1 beyond the end":         u64(40, 100*clusterBytes),
		"L1 out of step":            u64(40, l1Cluster*clusterBytes+8),
		"L1 wraps":                  u64(40, math.MaxUint64-clusterBytes+1),
		"refcounts beyond the end":  u64(48, 100*clusterBytes),
		"no refcount table":         u32(56, 0),
		"huge refcount table":       u32(56, math.MaxUint32),
		"snapshots":                 u32(60, 1),
		"external data file":        u64(72, incompatExtendedL2|1<<2),
		"other compression":         u64(72, incompatExtendedL2|1<<3),
		"unknown feature":           u64(72, incompatExtendedL2|1<<40),
		"plain L2":                  u64(72, 0),
		"refcount width":            u32(96, 6),
		"header length":             u32(100, 100),
		"header longer than itself": u32(100, math.MaxUint32),
		"backing format":            u32(headerBytes+8, 0x766d6466), // "vmdf"
		"endless extensions":        u32(headerBytes+16, 1),
		"extension over the end":    u32(headerBytes+4, math.MaxUint32),
		"refcount block nowhere":    u64(refcountTableCluster*clusterBytes, 1<<62),
		"refcount block odd":        u64(refcountTableCluster*clusterBytes, clusterBytes+1),
		"cut short":                 func(b []byte) []byte { return b[:clusterBytes/2] },
		"cut in the fixed part":     func(b []byte) []byte { return b[:50] },
		"relative name":             func(b []byte) []byte { b[headerBytes+24] = 'x'; return b },
		"name with a zero byte":     func(b []byte) []byte { b[headerBytes+25] = 0; return b },
	} {
		if h, err := parseBytes(lie(image(t, l1Covers, "/base"))); err == nil {
			t.Errorf("%s: accepted as %+v", name, h)
		}
	}
}

func TestWhatAPowerCutLeavesIsNotFound(t *testing.T) {
	zero := func(from, to int) func([]byte) []byte {
		return func(b []byte) []byte { clear(b[from:to]); return b }
	}
	for name, cut := range map[string]func([]byte) []byte{
		"an empty file":       func([]byte) []byte { return nil },
		"zeros":               func(b []byte) []byte { clear(b); return b },
		"no refcount table":   zero(clusterBytes, 2*clusterBytes),
		"no refcounts":        zero(2*clusterBytes, 3*clusterBytes),
		"no header, the rest": zero(0, clusterBytes),
	} {
		path := filepath.Join(t.TempDir(), fileName)
		if err := os.WriteFile(path, cut(image(t, l1Covers, "/base")), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := (Driver{}).Usage(disk.Volume{Path: path}); errs.KindOf(err) != errs.NotFound {
			t.Errorf("%s: %v", name, err)
		}
	}
	path := filepath.Join(t.TempDir(), fileName)
	if err := os.WriteFile(path, []byte(strings.Repeat("garbage ", 1000)), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := (Driver{}).Usage(disk.Volume{Path: path}); errs.KindOf(err) != errs.Internal {
		t.Errorf("garbage: %v", err)
	}
}

func TestReadHeaderWantsARegularFile(t *testing.T) {
	if _, err := ReadHeader(t.TempDir()); err == nil {
		t.Error("a directory was read")
	}
	if _, err := ReadHeader("/dev/zero"); err == nil {
		t.Error("a device was read")
	}
}

func FuzzParse(f *testing.F) {
	whole := image(f, 5*l1Covers, "/base")
	f.Add(whole[:4096])
	f.Add(whole[:headerBytes])
	f.Add([]byte("QFI\xfb"))
	f.Fuzz(func(t *testing.T, head []byte) {
		// A mutated header before intact tables, else nothing gets past the first check.
		b := bytes.Clone(whole)
		copy(b[:clusterBytes], head)
		h, err := parseBytes(b)
		if err != nil {
			return
		}
		if h.VirtualBytes <= 0 || h.VirtualBytes > disk.MaxBytes || h.VirtualBytes%disk.SectorBytes != 0 {
			t.Errorf("virtual size %d", h.VirtualBytes)
		}
		if !filepath.IsAbs(h.Backing) || strings.ContainsRune(h.Backing, 0) {
			t.Errorf("base %q", h.Backing)
		}
	})
}

func BenchmarkClone(b *testing.B) {
	dir := b.TempDir()
	base := disk.Base{Path: filepath.Join(dir, "base"), Bytes: 1 << 40}
	if err := errors.Join(os.WriteFile(base.Path, nil, 0o400), os.Truncate(base.Path, base.Bytes)); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := (Driver{}).Clone(b.Context(), base, disk.Spec{Home: disk.Home{Dir: dir}}); err != nil {
			b.Fatal(err)
		}
	}
}
