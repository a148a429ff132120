package oci

import (
	"archive/tar"
	"fmt"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// capability is security.capability of cap_net_raw+ep.
const capability = "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

var longName = strings.Repeat("long directory name/", 12) + strings.Repeat("n", 255)

// everyKind has a file of each kind, and whatever else files can have.
var everyKind = []entry{
	dir("./", 0o755), dir("etc/", 0o755), file("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n"), dir("tmp", 0o1777),
	file("bin/su", "#!").owned(0, 0, 0o4755), file("home/u/f", "mine").owned(1000, 100000, 0o600), symlink("lib", "usr/lib"), symlink("abs", "/etc/passwd"),
	{Header: tar.Header{Typeflag: tar.TypeChar, Name: "dev/null", Mode: 0o666, Devmajor: 1, Devminor: 3}},
	{Header: tar.Header{Typeflag: tar.TypeBlock, Name: "dev/vda", Mode: 0o660, Gid: 6, Devmajor: 254, Devminor: 300}},
	{Header: tar.Header{Typeflag: tar.TypeFifo, Name: "run/pipe", Mode: 0o600}},
	link("bin/second", "bin/su"), file("empty", ""), file(longName, "long"), file("with\nnewline and \xff", "odd"),
	file("bin/ping", "ping").xattr("security.capability", capability).xattr("user.note", "text"),
	{tar.Header{Typeflag: tar.TypeReg, Name: "precise", Mode: 0o644, ModTime: testTime.Add(123456789), Format: tar.FormatPAX}, "then"},
}

func v1Config(program string) v1.Config { return v1.Config{Entrypoint: []string{program}} }

// Layers add up to what umoci makes of them.
func TestLayersAddUp(t *testing.T) {
	for name, layers := range map[string][][]entry{
		"kinds": {everyKind, {file("etc/large", strings.Repeat("large", 1<<20)), file("zeros", strings.Repeat("\x00", 1<<20)+"end")}},
		"whiteouts": {
			{file("a/b/c", "1"), file("a/b/d", "1"), file("gone", "1"), file("dir/x", "1"), file("dir/sub/y", "1"), file("replaced/z", "1"), file("stays", "1")},
			{file(".wh.gone", ""), file("a/b/.wh.c", ""), file(".wh.dir", ""), file("replaced", "now a file"), file("stays", "2"), file(".wh.never", "")},
			{file("dir/new", "3"), file("a/b/c", "3")},
		},
		"a whiteout beside what replaces it": {
			{file("before/old", "1"), file("after/old", "1"), file("f", "1")},
			{file("before/new", "2"), file(".wh.before", ""), file(".wh.after", ""), file("after/new", "2"), file(".wh.f", ""), file("f", "2")},
		},
		"opaque": {
			{file("d/old", "1"), file("d/sub/old", "1"), file("e/sub/old", "1")},
			{file("d/first", "2"), file("d/sub/new", "2"), file("d/.wh..wh..opq", ""), dir("e", 0o700), file("e/.wh..wh..opq", ""), file("e/sub/new", "2")},
			{file("d/third", "3")},
		},
		"changes of kind": {
			{file("f/x", "1"), file("g", "1"), symlink("h", "f"), file("i", "1"), dir("j", 0o711).owned(5, 6, 0o711), file("j/kept", "1")},
			{file("f", "2"), dir("g", 0o755), file("g/x", "2"), dir("h", 0o755), symlink("i", "g"), dir("j", 0o500).owned(7, 8, 0o500)},
		},
		"symbolic links above": {
			{dir("usr/bin", 0o755), symlink("bin", "usr/bin"), symlink("var/run", "/run"), dir("run", 0o755), symlink("up", "usr/../usr/bin")},
			{file("bin/sh", "2"), file("var/run/lock", "2"), file("up/ls", "2"), link("bin/bash", "bin/sh")},
			{file("bin/.wh.sh", "")},
		},
		"hard links across layers": {
			{file("a", "content").owned(1, 2, 0o640), file("keep", "k")},
			{link("b", "a"), link("sub/c", "b")},
			{file(".wh.a", ""), link("d", "sub/c"), link("keep2", "keep")},
			{file("b", "another")},
		},
		"names twice in a layer": {
			{file("a", "1"), file("a", "2"), dir("d", 0o700), file("d/x", "1"), dir("d", 0o755), file("e", "1"), symlink("e", "a"), link("l", "a"), file("l", "own")},
		},
		"root": {{dir("./", 0o700).owned(3, 4, 0o700), file("./x", "1"), file("//y", "1"), file("/abs/z", "1")}},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLayout(t)
			var blobs [][]byte
			for _, entries := range layers {
				blobs = append(blobs, tarOf(t, entries...))
			}
			l.index(l.image(v1.Config{}, blobs...))
			fs, _, err := imported(t, l.dir, Choice{})
			if err != nil {
				t.Fatal(err)
			}
			same(t, ofFilesystem(t, fs), unpackedBy(t, l.dir))
		})
	}
}

// Forty layers that remove, replace and link what lower ones have.
func TestFortyLayers(t *testing.T) {
	l := newLayout(t)
	var blobs [][]byte
	for n := range 40 {
		entries := []entry{dir("d", 0o755)}
		for i := range 30 {
			entries = append(entries, file(fmt.Sprintf("d/%d/%d", n, i), strings.Repeat(fmt.Sprint(n), i*100)))
		}
		if n > 0 {
			entries = append(entries, file(fmt.Sprintf("d/%d/.wh.7", n-1), ""), link(fmt.Sprintf("d/%d/linked", n), fmt.Sprintf("d/%d/8", n-1)), file(fmt.Sprintf("d/%d/9", n-1), "replaced"))
		}
		if n%10 == 9 {
			entries = append(entries, file(fmt.Sprintf("d/.wh.%d", n-5), ""))
		}
		blobs = append(blobs, tarOf(t, entries...))
	}
	l.index(l.image(v1.Config{}, blobs...))
	fs, _, err := imported(t, l.dir, Choice{})
	if err != nil {
		t.Fatal(err)
	}
	same(t, ofFilesystem(t, fs), unpackedBy(t, l.dir))
}
