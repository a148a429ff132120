package oci

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sys/unix"

	"banger/internal/errs"
	"banger/internal/image/ext4"
)

// hostile is an input that is made to harm. It is refused with a sentence that says what is
// wrong, or taken as harmless; either way nothing outside is touched, it takes no more than 30
// seconds of a CPU, and memory stays below 256 MiB.
type hostile struct {
	name    string
	refused string // part of the sentence; "" if it is taken
	make    func(h *lair) string
}

var hostileInputs = []hostile{
	// names
	{"up", "leads out", func(h *lair) string { return h.tar(file("../escape", "x")) }},
	{"up from below", "leads out", func(h *lair) string { return h.tar(file("a/../../escape", "x")) }},
	{"up and down", "leads out", func(h *lair) string { return h.tar(file("a/../b", "x")) }},
	{"only up", "leads out", func(h *lair) string { return h.tar(dir("..", 0o777)) }},
	{"up to the canary", "leads out", func(h *lair) string { return h.tar(file(strings.Repeat("../", 40)+h.canary[1:], "x")) }},
	{"absolute", "", func(h *lair) string { return h.tar(file(h.canary, "x")) }},
	{"many slashes", "", func(h *lair) string { return h.tar(file("///a////b", "x")) }},
	{"newline", "", func(h *lair) string { return h.tar(file("a\nb\n", "x")) }},
	{"control characters", "", func(h *lair) string { return h.tar(file("\x1b[2J\r\b", "x")) }},
	{"not UTF-8", "", func(h *lair) string { return h.tar(file("\xff\xfe\xc0\x80", "x")) }},
	{"300 bytes", "300 bytes", func(h *lair) string { return h.tar(file(strings.Repeat("n", 300), "x")) }},
	{"255 bytes", "", func(h *lair) string { return h.tar(file(strings.Repeat("n", 255), "x")) }},
	{"very deep", "deep", func(h *lair) string { return h.tar(file(strings.Repeat("d/", 3000)+"f", "x")) }},
	{"NUL", "damaged", func(h *lair) string { return h.pax(record("path", "a\x00b")) }},
	{"no name", "root of a filesystem", func(h *lair) string { return h.raw(func(b []byte) { clear(b[:100]) }, "") }},
	{"a file for a root", "root of a filesystem", func(h *lair) string { return h.tar(file(".", "x")) }},
	{"a million bytes", "300 bytes|bytes, and no|damaged", func(h *lair) string { return h.pax(record("path", strings.Repeat("n", 1<<20-100))) }},
	{"whiteout of nothing", "no file of the name", func(h *lair) string { return h.layers([]entry{file("a/.wh.", "")}) }},
	{"whiteout of what is above", "no file of the name", func(h *lair) string { return h.layers([]entry{file("a/.wh...", "")}) }},
	{"opaque root", "", func(h *lair) string { return h.layers([]entry{file("a", "x")}, []entry{file(".wh..wh..opq", "")}) }},
	// symbolic links
	{"through a link to the canary's directory", "", func(h *lair) string {
		return h.tar(symlink("l", filepath.Dir(h.canary)), file("l/"+filepath.Base(h.canary), "x"))
	}},
	{"through a link upwards", "", func(h *lair) string {
		return h.tar(symlink("l", strings.Repeat("../", 40)+filepath.Dir(h.canary)[1:]), file("l/"+filepath.Base(h.canary), "x"))
	}},
	{"over a link to the canary", "", func(h *lair) string { return h.tar(symlink("l", h.canary), file("l", "x")) }},
	{"a directory over a link", "", func(h *lair) string { return h.tar(symlink("l", "/"), dir("l", 0o700), file("l/x", "x")) }},
	{"links in a circle", "circle", func(h *lair) string { return h.tar(symlink("a", "b"), symlink("b", "a"), file("a/x", "x")) }},
	{"a link to itself", "circle", func(h *lair) string { return h.tar(symlink("a", "a"), file("a/x", "x")) }},
	{"links in a chain", "circle", func(h *lair) string {
		var all []entry
		for i := range 50 {
			all = append(all, symlink(fmt.Sprint(i), fmt.Sprint(i+1)))
		}
		return h.tar(append(all, file("0/x", "x"))...)
	}},
	{"a link to nothing", "target", func(h *lair) string { return h.tar(symlink("a", "")) }},
	{"a link of 5000 bytes", "target", func(h *lair) string { return h.tar(symlink("a", strings.Repeat("t", 5000))) }},
	{"a link with a NUL", "damaged|target", func(h *lair) string { return h.pax(record("linkpath", "a\x00b")) }},
	{"a directory by a link with a long name", "bytes, and no", func(h *lair) string { return h.tar(symlink("a", strings.Repeat("t", 300)), file("a/x", "x")) }},
	{"whiteout through a link", "", func(h *lair) string {
		return h.layers([]entry{symlink("l", filepath.Dir(h.canary))}, []entry{file("l/.wh."+filepath.Base(h.canary), "")})
	}},
	{"links that take long", "take too long", func(h *lair) string {
		return h.many(200_000, func(i int) entry {
			if i < 39 {
				return symlink(fmt.Sprint("l", i), strings.Repeat("./", 2000)+fmt.Sprint("l", i+1))
			}
			return file(fmt.Sprint("l0/", i), "")
		})
	}},
	// hard links
	{"hard link upwards", "leads out", func(h *lair) string { return h.tar(link("a", "../../"+h.canary)) }},
	{"hard link to the canary", "not there", func(h *lair) string { return h.tar(link("a", h.canary)) }},
	{"hard link through a link", "not there", func(h *lair) string {
		return h.tar(symlink("l", filepath.Dir(h.canary)), link("a", "l/"+filepath.Base(h.canary)))
	}},
	{"hard link to itself", "not there", func(h *lair) string { return h.tar(link("a", "a")) }},
	{"hard links in a circle", "not there", func(h *lair) string { return h.tar(link("a", "b"), link("b", "a")) }},
	{"hard link to a directory", "directory", func(h *lair) string { return h.tar(dir("d", 0o755), link("a", "d")) }},
	{"hard link to the root", "directory", func(h *lair) string { return h.tar(link("a", "/")) }},
	{"hard link to what was removed", "not there", func(h *lair) string {
		return h.layers([]entry{file("a", "x")}, []entry{file(".wh.a", ""), link("b", "a")})
	}},
	{"hard link to a link outside", "", func(h *lair) string { return h.tar(symlink("l", h.canary), link("a", "l"), file("a", "x")) }},
	{"70000 names of a file", "65000 names", func(h *lair) string {
		return h.many(70_000, func(i int) entry {
			if i == 0 {
				return file("f", "x")
			}
			return link(fmt.Sprint(i), "f")
		})
	}},
	// kinds
	{"devices", "", func(h *lair) string {
		return h.tar(entry{Header: tar.Header{Typeflag: tar.TypeBlock, Name: "sda", Devmajor: 8}}, entry{Header: tar.Header{Typeflag: tar.TypeChar, Name: "mem", Devmajor: 1, Devminor: 1}})
	}},
	{"a pipe", "", func(h *lair) string { return h.tar(entry{Header: tar.Header{Typeflag: tar.TypeFifo, Name: "p"}}) }},
	{"a device of a large number", "no number of a device", func(h *lair) string {
		return h.tar(entry{Header: tar.Header{Typeflag: tar.TypeChar, Name: "c", Devmajor: 1 << 30, Format: tar.FormatGNU}})
	}},
	{"an unknown kind", "of the type", func(h *lair) string { return h.raw(func(b []byte) { b[156] = 'Z' }, "") }},
	{"a file as a directory", "not a directory", func(h *lair) string { return h.tar(file("a", "x"), file("a/b", "x")) }},
	{"names ten thousand times over", "", func(h *lair) string {
		return h.many(100_000, func(i int) entry {
			return []entry{file("a", "x"), symlink("a", "b"), dir("a", 0o755), file("a/b", "x")}[i%4]
		})
	}},
	{"a large directory that comes and goes", "", func(h *lair) string {
		return h.many(100_000, func(i int) entry {
			if i < 50_000 {
				return file(fmt.Sprint("d/", i), "")
			}
			return []entry{file("d", ""), dir("d", 0o755), file("d/x", "")}[i%3]
		})
	}},
	{"owners beyond numbers", "no user and group", func(h *lair) string { return h.pax(record("uid", "1099511627776")) }},
	{"negative owners", "no user and group", func(h *lair) string { return h.pax(record("gid", "-1")) }},
	{"times beyond times", "", func(h *lair) string { return h.pax(record("mtime", "999999999999")) }},
	{"attributes that do not fit", "extended attributes", func(h *lair) string { return h.tar(file("f", "x").xattr("user.x", strings.Repeat("v", 100_000))) }},
	{"attributes of other systems", "", func(h *lair) string {
		return h.tar(file("f", "x").xattr("com.apple.x", "v").xattr("user.", "").xattr("system.posix_acl_access", "broken").xattr("trusted."+strings.Repeat("n", 250), "v"))
	}},
	// sizes
	{"a size that lies", "too early", func(h *lair) string { return h.raw(func(b []byte) { copy(b[124:136], "00777777777\x00") }, "short") }},
	{"a negative size", "damaged", func(h *lair) string {
		return h.raw(func(b []byte) { copy(b[124:136], "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff") }, "")
	}},
	{"eight exabytes", "too early|damaged", func(h *lair) string {
		return h.raw(func(b []byte) { copy(b[124:136], "\x80\x00\x00\x00\x7f\xff\xff\xff\xff\xff\xff\x00") }, "")
	}},
	{"a sparse file of a terabyte", "sparse files", func(h *lair) string {
		return h.pax(record("GNU.sparse.major", "0") + record("GNU.sparse.minor", "1") + record("GNU.sparse.size", "1099511627776") +
			record("GNU.sparse.numblocks", "1") + record("GNU.sparse.map", "0,7"))
	}},
	{"records of two million bytes", "damaged", func(h *lair) string { return h.pax(record("comment", strings.Repeat("c", 2<<20))) }},
	{"a million files", "", func(h *lair) string {
		return h.many(1_000_000, func(i int) entry { return file(fmt.Sprintf("directory-%d/file-%d", i/1000, i), "") })
	}},
	{"two million files", "more than 1500000 files", func(h *lair) string {
		return h.many(1_600_000, func(i int) entry { return file(fmt.Sprintf("%d/%d", i/10000, i), "") })
	}},
	{"names that fill the memory", "names of its files", func(h *lair) string {
		return h.many(250_000, func(i int) entry { return file(fmt.Sprint(i)+strings.Repeat("n", 230), "") })
	}},
	// compression
	{"a bomb of gzip", "times its size", func(h *lair) string { return h.bomb(2<<30, gzipTo, types.OCILayer) }},
	{"a bomb of zstd", "times its size", func(h *lair) string { return h.bomb(4<<30, zstdTo, types.OCILayerZStd) }},
	{"a bomb in a bomb", "neither an archive", func(h *lair) string {
		return h.file(gzipped(h, gzipped(h, tarOf(h, file("a", strings.Repeat("\x00", 1<<20))))))
	}},
	{"xz that wants 1.5 GiB", "memory|damaged", func(h *lair) string {
		// A stream header, then a block header: LZMA2 with the largest dictionary (40: 4 GiB-1).
		return h.file([]byte("\xfd7zXZ\x00\x00\x04\xe6\xd6\xb4\x46\x02\x00\x21\x01\x28\x00\x00\x00\x97\x12\x57\x8f" + strings.Repeat("\x00", 600)))
	}},
	{"gzip cut short", "damaged", func(h *lair) string {
		b := gzipped(h, tarOf(h, file("a", strings.Repeat("content", 1000))))
		return h.file(b[:len(b)/2])
	}},
	{"an archive cut short", "too early", func(h *lair) string {
		b := tarOf(h, file("a", strings.Repeat("content", 10000)))
		return h.file(b[:20000])
	}},
	{"a header cut short", "too early|damaged", func(h *lair) string {
		b := tarOf(h, file("a", "x"), file("b", "x"))
		return h.file(b[:1024+300])
	}},
	{"a header that is damaged", "damaged", func(h *lair) string {
		b := tarOf(h, file("a", "x"), file("b", "x"))
		b[1024+5] ^= 0xff
		return h.file(b)
	}},
	{"nothing", "empty", func(h *lair) string { return h.file(nil) }},
	{"noise", "neither an archive", func(h *lair) string { return h.file(bytes.Repeat([]byte("noise\x01\x02"), 5000)) }},
	{"a disk with partitions", "partitions", func(h *lair) string {
		b := make([]byte, 1<<20)
		b[510], b[511] = 0x55, 0xaa
		return h.file(b)
	}},
	{"qcow2", "qcow2", func(h *lair) string { return h.file(append([]byte("QFI\xfb\x00\x00\x00\x03"), make([]byte, 1<<16)...)) }},
	// layouts
	{"another layer than its digest says", "not what it should be", func(h *lair) string {
		l := newLayout(h)
		d := l.blob(gzipped(h, tarOf(h, file("a", "x"))), types.OCILayer)
		l.manifest([]v1.Descriptor{d}, []v1.Hash{digestOf(tarOf(h, file("a", "x")))})
		l.write(blobName(d.Digest), gzipped(h, tarOf(h, file("a", "y"))))
		return l.dir
	}},
	{"another content than the configuration says", "not what it should be", func(h *lair) string {
		l := newLayout(h)
		l.manifest([]v1.Descriptor{l.blob(gzipped(h, tarOf(h, file("a", "x"))), types.OCILayer)}, []v1.Hash{digestOf(nil)})
		return l.dir
	}},
	{"a layer of another size", "bytes, not", func(h *lair) string {
		l := newLayout(h)
		d := l.blob(gzipped(h, tarOf(h, file("a", "x"))), types.OCILayer)
		d.Size++
		l.manifest([]v1.Descriptor{d}, []v1.Hash{digestOf(nil)})
		return l.dir
	}},
	{"a layer that is not there", "incomplete", func(h *lair) string {
		l := newLayout(h)
		l.manifest([]v1.Descriptor{{MediaType: types.OCILayer, Digest: digestOf([]byte("x")), Size: 5}}, []v1.Hash{digestOf(nil)})
		return l.dir
	}},
	{"another manifest than its digest says", "not what it should be", func(h *lair) string {
		l := newLayout(h)
		d := l.image(v1.Config{})
		l.index(d)
		l.write(blobName(d.Digest), []byte("{}"))
		return l.dir
	}},
	{"more layers than it tells of", "layers", func(h *lair) string {
		l := newLayout(h)
		d := l.blob(nil, types.OCILayer)
		l.manifest([]v1.Descriptor{d, d}, []v1.Hash{digestOf(nil)})
		return l.dir
	}},
	{"600 layers", "600 layers", func(h *lair) string {
		l := newLayout(h)
		empty := tarOf(h)
		d := l.blob(empty, types.OCIUncompressedLayer)
		var layers []v1.Descriptor
		var diffs []v1.Hash
		for range 600 {
			layers, diffs = append(layers, d), append(diffs, d.Digest)
		}
		l.manifest(layers, diffs)
		return l.dir
	}},
	{"indexes without end", "without end", func(h *lair) string {
		l := newLayout(h)
		d := l.image(v1.Config{})
		for range 20 {
			d = l.json(v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex, Manifests: []v1.Descriptor{d}}, types.OCIImageIndex)
		}
		l.index(d)
		return l.dir
	}},
	{"an index twice", "contains itself", func(h *lair) string {
		l := newLayout(h)
		d := l.json(v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex, Manifests: []v1.Descriptor{l.image(v1.Config{})}}, types.OCIImageIndex)
		l.index(d, d)
		return l.dir
	}},
	{"an index of five million bytes", "larger than", func(h *lair) string {
		l := newLayout(h)
		l.write("index.json", bytes.Repeat([]byte(" "), 5<<20))
		return l.dir
	}},
	{"an index that is none", "damaged", func(h *lair) string {
		l := newLayout(h)
		l.write("index.json", []byte(strings.Repeat("[", 100_000)))
		return l.dir
	}},
	{"an index of nothing", "holds no image", func(h *lair) string {
		l := newLayout(h)
		l.write("index.json", []byte("null"))
		return l.dir
	}},
	{"an artefact", "artefact", func(h *lair) string {
		l := newLayout(h)
		l.index(l.json(v1.Manifest{SchemaVersion: 2, MediaType: types.OCIManifestSchema1, Config: l.blob([]byte("{}"), "application/vnd.example.chart")}, types.OCIManifestSchema1))
		return l.dir
	}},
	{"another digest", "damaged|sha256", func(h *lair) string {
		l := newLayout(h)
		l.write("index.json", []byte(`{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","size":2,"digest":"sha512:`+strings.Repeat("0", 128)+`"}]}`))
		return l.dir
	}},
	{"a digest with a path", "damaged|sha256", func(h *lair) string {
		l := newLayout(h)
		l.write("index.json", []byte(`{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","size":2,"digest":"sha256:../../../../etc/passwd"}]}`))
		return l.dir
	}},
	{"another architecture", "linux/arm64", func(h *lair) string {
		l := newLayout(h)
		c := l.json(v1.ConfigFile{Architecture: "arm64", OS: "linux"}, types.OCIConfigJSON)
		l.index(l.json(v1.Manifest{SchemaVersion: 2, MediaType: types.OCIManifestSchema1, Config: c}, types.OCIManifestSchema1))
		return l.dir
	}},
	{"a blob that is a link to the canary", "escapes", func(h *lair) string {
		l := newLayout(h)
		d := l.image(v1.Config{})
		l.index(d)
		path := filepath.Join(l.dir, blobName(d.Digest))
		if err := errors.Join(os.Remove(path), os.Symlink(h.canary, path)); err != nil {
			h.Fatal(err)
		}
		return l.dir
	}},
	{"a blob that is a pipe", "not an ordinary file", func(h *lair) string {
		l := newLayout(h)
		d := l.image(v1.Config{})
		l.index(d)
		path := filepath.Join(l.dir, blobName(d.Digest))
		if err := errors.Join(os.Remove(path), unix.Mkfifo(path, 0o600)); err != nil {
			h.Fatal(err)
		}
		return l.dir
	}},
	{"a Docker archive that names a file of the host", "incomplete", func(h *lair) string {
		return h.tar(file("manifest.json", `[{"Config":"../../../../../../etc/passwd","Layers":[]}]`))
	}},
	{"a Docker archive of links", "circle", func(h *lair) string {
		return h.tar(file("manifest.json", `[{"Config":"a.json","Layers":[]}]`), symlink("a.json", "b.json"), symlink("b.json", "a.json"))
	}},
}

// result is what became of an input in the child.
type result struct {
	Error   string
	Kind    errs.Kind
	Seconds float64
	Out     string
}

// TestHostileInputs makes the inputs and has a process of its own import them all, whose memory
// then tells of nothing else.
func TestHostileInputs(t *testing.T) {
	if listed := os.Getenv("BANGER_HOSTILE"); listed != "" {
		importHostile(t, listed)
		return
	}
	needTools(t)
	if len(hostileInputs) < 60 {
		t.Fatalf("there are only %d", len(hostileInputs))
	}
	outside := t.TempDir()
	canary := filepath.Join(outside, "canary")
	if err := os.WriteFile(canary, []byte("untouched"), 0o600); err != nil {
		t.Fatal(err)
	}
	h := &lair{t, t.TempDir(), canary}
	var paths []string
	for _, in := range hostileInputs {
		paths = append(paths, in.make(h))
	}
	list, err := json.Marshal(paths)
	if err != nil {
		t.Fatal(err)
	}
	work := t.TempDir()
	if err := os.WriteFile(filepath.Join(work, "inputs"), list, 0o600); err != nil {
		t.Fatal(err)
	}
	child := exec.Command(os.Args[0], "-test.run=^TestHostileInputs$", "-test.count=1")
	child.Env = append(os.Environ(), "BANGER_HOSTILE="+work)
	if out, err := child.CombinedOutput(); err != nil {
		t.Fatalf("%v:\n%s", err, out)
	}
	var results []result
	b, err := os.ReadFile(filepath.Join(work, "results"))
	if err == nil {
		err = json.Unmarshal(b, &results)
	}
	if err != nil || len(results) != len(hostileInputs) {
		t.Fatalf("%d results: %v", len(results), err)
	}
	for i, in := range hostileInputs {
		t.Run(in.name, func(t *testing.T) { results[i].judge(t, in) })
	}
	if peak, err := strconv.ParseInt(string(readAll(t, filepath.Join(work, "peak"))), 10, 64); err != nil || peak > 256<<10 {
		t.Errorf("memory came to %d KiB (%v)", peak, err)
	} else {
		t.Logf("memory came to %d MiB", peak>>10)
	}
	if entries, err := os.ReadDir(outside); err != nil || len(entries) != 1 || string(readAll(t, canary)) != "untouched" {
		t.Errorf("what lies outside was touched: %v, %v", entries, err)
	}
}

func readAll(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (r result) judge(t *testing.T, in hostile) {
	if r.Seconds > 30 {
		t.Errorf("it took %.0f seconds", r.Seconds)
	}
	if in.refused == "" {
		if r.Error != "" {
			t.Fatalf("refused: %s", r.Error)
		}
		run(t, "e2fsck", "-f", "-n", r.Out)
		os.Remove(r.Out)
		return
	}
	if r.Error == "" || !regexp.MustCompile(in.refused).MatchString(r.Error) {
		t.Errorf("the answer is %q, want one with %q", r.Error, in.refused)
	}
	if strings.Contains(r.Error, "untouched") {
		t.Error("the answer tells what is in the canary")
	}
}

// importHostile is the child.
func importHostile(t *testing.T, work string) {
	var paths []string
	if err := json.Unmarshal(readAll(t, filepath.Join(work, "inputs")), &paths); err != nil {
		t.Fatal(err)
	}
	var results []result
	for i, path := range paths {
		begin := cpuSeconds(t)
		out := filepath.Join(work, fmt.Sprint("fs", i))
		err := importOne(path, work, out)
		r := result{Seconds: cpuSeconds(t) - begin, Out: out}
		if err != nil {
			r.Error, r.Kind = err.Error(), errs.KindOf(err)
		}
		results = append(results, r)
	}
	b, err := json.Marshal(results)
	if err != nil {
		t.Fatal(err)
	}
	status := string(readAll(t, "/proc/self/status"))
	peak := regexp.MustCompile(`VmHWM:\s+(\d+) kB`).FindStringSubmatch(status)
	if peak == nil {
		t.Fatalf("no peak in\n%s", status)
	}
	for name, content := range map[string][]byte{"results": b, "peak": []byte(peak[1])} {
		if err := os.WriteFile(filepath.Join(work, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// cpuSeconds is what this process has computed: on a machine that does other things too, the
// clock tells of those.
func cpuSeconds(t *testing.T) float64 {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()).Seconds()
}

func importOne(path, scratch, out string) error {
	s, err := Open(path, scratch, Choice{})
	if err != nil {
		return err
	}
	defer s.Close()
	w, err := ext4.NewWriter(out, "seed", 0)
	if err != nil {
		return err
	}
	defer w.Close()
	return s.Write(context.Background(), w, ext4.Size{JournalBytes: 4 << 20}, func(string, int64, int64) {})
}
