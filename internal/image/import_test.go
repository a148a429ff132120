package image

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"banger/internal/errs"
	"banger/internal/host"
	"banger/internal/image/oci"
)

// debianTar is a root filesystem that says it is Debian, with as many bytes more.
func debianTar(t *testing.T, more int) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for name, content := range map[string]string{
		"usr/lib/os-release": "NAME=\"Debian GNU/Linux\"\nID=debian\nVERSION_ID=\"12\"\nVERSION_CODENAME=bookworm\n", "sbin/init": "#!", "more": strings.Repeat("x", more),
	} {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o755, Size: int64(len(content))}); err != nil {
			t.Fatal(err)
		}
		io.WriteString(w, content)
	}
	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: "etc/os-release", Linkname: "../usr/lib/os-release"}); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func fromStream(r io.Reader) func(context.Context, string) (*oci.Source, error) {
	return func(_ context.Context, scratch string) (*oci.Source, error) {
		return oci.OpenStream(r, "test", scratch, oci.Choice{})
	}
}

func importStore(t *testing.T) (*Store, string) {
	t.Helper()
	for _, program := range []string{"mkfs.ext4", "tune2fs", "e2fsck"} {
		if _, err := host.LookPath(program); err != nil {
			t.Skipf("SKIP: this host has no %s", program)
		}
	}
	dir := filepath.Join(t.TempDir(), "images")
	return NewStore(dir, func() (string, error) { return "", errs.New(errs.NotFound, "no bundle") }), dir
}

// noLeftovers fails if there is more in the store than finished images.
func noLeftovers(t *testing.T, s *Store) {
	t.Helper()
	if left, err := s.Leftovers(); err != nil || len(left) > 0 {
		t.Errorf("left behind: %q (%v)", left, err)
	}
}

func TestImport(t *testing.T) {
	s, _ := importStore(t)
	i, err := s.Import(t.Context(), Import{Name: "deb:12", Source: "a test", Bytes: 200 << 20, Open: fromStream(bytes.NewReader(debianTar(t, 1000)))}, func(string, int64, int64) {})
	if err != nil {
		t.Fatal(err)
	}
	if i.Name != "deb:12" || i.Distribution != "debian" || i.Release != "bookworm" || i.Init != "/sbin/init" || i.Source != "a test" || i.Config != nil || i.AllocatedBytes > 32<<20 || i.VirtualBytes != 256<<20 {
		t.Errorf("it is %+v", i)
	}
	if got, err := s.Get("deb:12"); err != nil || got.Digest != i.Digest {
		t.Errorf("got %+v, %v", got, err)
	}
	if err := host.Run(t.Context(), host.Command{Path: "e2fsck", Args: []string{"-f", "-n", i.Path}}); err != nil {
		t.Error(err)
	}
	noLeftovers(t, s)

	// What is a filesystem already is taken as it is.
	raw, err := os.Open(i.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	again, err := s.Import(t.Context(), Import{Name: "raw", Open: fromStream(raw)}, func(string, int64, int64) {})
	if err != nil || again.VirtualBytes != i.VirtualBytes || again.Release != "bookworm" || again.AllocatedBytes > 64<<20 {
		t.Errorf("from the filesystem: %+v, %v", again, err)
	}
	noLeftovers(t, s)
}

func TestImportsThatFail(t *testing.T) {
	s, _ := importStore(t)
	random := bytes.Repeat([]byte("0123456789abcdef"), 10<<16)
	broken := make([]byte, 1<<20)
	copy(broken[1024+0x38:], "\x53\xef") // an ext4 filesystem's magic number and nothing else
	for name, tc := range map[string]struct {
		in   Import
		kind errs.Kind
		says string
	}{
		"a bad name":           {Import{Name: "a@b", Open: fromStream(bytes.NewReader(nil))}, errs.Invalid, "can be called"},
		"nothing":              {Import{Name: "a", Open: fromStream(bytes.NewReader(nil))}, errs.Invalid, "empty"},
		"noise":                {Import{Name: "a", Open: fromStream(bytes.NewReader(random))}, errs.Invalid, "neither an archive"},
		"too large":            {Import{Name: "a", Bytes: 128 << 20, Open: fromStream(bytes.NewReader(debianTar(t, 200<<20)))}, errs.Invalid, "do not fit"},
		"no filesystem":        {Import{Name: "a", Open: fromStream(bytes.NewReader(broken))}, errs.Invalid, "damaged"},
		"an end that is early": {Import{Name: "a", Open: fromStream(bytes.NewReader(debianTar(t, 1<<20)[:1<<19]))}, errs.Invalid, "too early"},
		"a reader that fails":  {Import{Name: "a", Open: fromStream(io.MultiReader(bytes.NewReader(debianTar(t, 1<<20)[:1<<19]), failing{}))}, errs.Internal, "torn"},
		"a full disk":          {Import{Name: "a", Open: fromStream(io.MultiReader(bytes.NewReader(debianTar(t, 1<<20)[:1<<19]), failing{unix.ENOSPC}))}, errs.Unavailable, "no space"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := s.Import(t.Context(), tc.in, func(string, int64, int64) {})
			if errs.KindOf(err) != tc.kind || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("error is %v (%s)", err, errs.KindOf(err))
			}
			noLeftovers(t, s)
			if all, err := s.List(); err != nil || len(all) > 0 {
				t.Errorf("there are %+v (%v)", all, err)
			}
		})
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) {
	if f.err != nil {
		return 0, f.err
	}
	return 0, errors.New("torn")
}

// What an image is exported as is what it was, also where the filesystem was made by mkfs.
func TestExportOfAnImage(t *testing.T) {
	s, _ := importStore(t)
	tree := t.TempDir()
	if err := os.WriteFile(filepath.Join(tree, "file"), []byte("content"), 0o640); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "fs")
	mkfs(t, tree, path, "64M")
	i, err := s.Import(t.Context(), Import{Name: "made", Open: func(_ context.Context, scratch string) (*oci.Source, error) {
		return oci.Open(path, scratch, oci.Choice{})
	}}, func(string, int64, int64) {})
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := s.Export(t.Context(), i, "tar", &out); err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	for r := tar.NewReader(&out); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		files[h.Name] = string(b)
	}
	if len(files) != 2 || files["file"] != "content" {
		t.Errorf("exported %q", files)
	}
	if err := s.Export(t.Context(), i, "zip", io.Discard); errs.KindOf(err) != errs.Invalid {
		t.Errorf("error is %v", err)
	}
	noLeftovers(t, s)
}
