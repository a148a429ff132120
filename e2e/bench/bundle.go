package main

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// bundleBytes is how large the bundle is that is fetched.
const bundleBytes = 500 << 20

// fetchRatio measures a bundle's way from a server on this host into its place, against the three
// programs that fetch, unpack and check the same archive.
func fetchRatio(b *bench) (figures []Figure, err error) {
	dir := filepath.Join(b.state, "bundle")
	src, archive := filepath.Join(dir, "src"), filepath.Join(dir, "b.tar.zst")
	if err := writeLargeBundle(src); err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	maker := b.beside(dir, "maker", "BANGER_RUNTIME_DIR="+src)
	if err := errors.Join(maker("runtime", "package", "-o", archive), maker("daemon", "stop")); err != nil {
		return nil, err
	}
	server := httptest.NewTLSServer(http.FileServer(http.Dir(dir)))
	defer server.Close()
	ca := filepath.Join(dir, "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}), 0o644); err != nil {
		return nil, err
	}
	address := server.URL + "/b.tar.zst"
	there, bare := filepath.Join(dir, "there"), filepath.Join(dir, "bare")
	fetcher := b.beside(dir, "fetcher", "BANGER_RUNTIME_DIR="+there, "SSL_CERT_FILE="+ca)
	defer func() { err = errors.Join(err, fetcher("daemon", "stop")) }()
	if err := fetcher("ls"); err != nil { // starts the daemon
		return nil, err
	}
	const n = 5
	var ours, theirs []float64
	for range n {
		took, err := timed(func() error { return fetcher("runtime", "fetch", "--url", address) })
		if err != nil {
			return nil, err
		}
		ours = append(ours, took)
		if err := errors.Join(os.RemoveAll(there), os.MkdirAll(bare, 0o755)); err != nil {
			return nil, err
		}
		took, err = timed(func() error { return byPrograms(address, ca, archive, bare) })
		if err != nil {
			return nil, err
		}
		theirs = append(theirs, took)
		if err := os.RemoveAll(bare); err != nil {
			return nil, err
		}
	}
	return []Figure{{"fetch_ratio", median(ours) / median(theirs), "ratio", n, median(theirs),
		"fetch and install of a bundle of 500 MiB over loopback, against curl | zstd -d | tar x plus sha256sum"}}, nil
}

func byPrograms(address, ca, archive, to string) error {
	out, err := exec.Command("sh", "-ec", `curl --silent --fail --cacert "$1" "$0" | zstd -dc | tar -x -C "$2"; sha256sum "$3"`, address, ca, to, archive).CombinedOutput()
	if err != nil {
		return fmt.Errorf("curl, zstd, tar or sha256sum: %w: %s", err, out)
	}
	return nil
}

// beside runs commands of another banger, that has these settings too.
func (b *bench) beside(dir, name string, env ...string) func(args ...string) error {
	return func(args ...string) error {
		c := exec.Command(filepath.Join(b.bin, "banger"), args...)
		c.Env = append(append(b.env(), "BANGER_STATE_DIR="+filepath.Join(dir, name)), env...)
		log, err := os.CreateTemp(dir, "out-") // the daemon, which it may start, keeps no pipe of ours
		if err != nil {
			return err
		}
		defer os.Remove(log.Name())
		defer log.Close()
		c.Stdout, c.Stderr = log, log
		if err := c.Run(); err != nil {
			said, _ := os.ReadFile(log.Name())
			return fmt.Errorf("banger %q: %w: %s", args, err, said)
		}
		return nil
	}
}

// writeLargeBundle makes a bundle of the kernel and as much of the image debian as it takes.
func writeLargeBundle(dir string) error {
	type file struct {
		Path   string `json:"path"`
		Bytes  int64  `json:"bytes"`
		SHA256 string `json:"sha256"`
	}
	type artefact struct {
		Name    string    `json:"name"`
		BuiltAt time.Time `json:"built_at"`
		Files   []file    `json:"files"`
	}
	runtime := cmp.Or(os.Getenv("BANGER_RUNTIME_DIR"), "runtime")
	images, err := filepath.Glob(filepath.Join(runtime, "images/debian/rootfs-*.ext4"))
	if err != nil || len(images) != 1 {
		return fmt.Errorf("there are %d images debian in %s", len(images), runtime)
	}
	if err := os.MkdirAll(filepath.Join(dir, "images"), 0o755); err != nil {
		return err
	}
	made := artefact{Name: "image/large", BuiltAt: time.Now().UTC()}
	left := int64(bundleBytes)
	for _, from := range []string{filepath.Join(runtime, "kernels/debian/vmlinux"), filepath.Join(runtime, "kernels/debian/modules.ext4"), images[0]} {
		f := file{Path: "images/" + filepath.Base(from)}
		if f.Bytes, f.SHA256, err = copyFirst(filepath.Join(dir, f.Path), from, left); err != nil {
			return err
		}
		left -= f.Bytes
		made.Files = append(made.Files, f)
	}
	text, err := json.Marshal(map[string]any{"schema": 1, "artefacts": []artefact{made}})
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "bundle.json"), text, 0o644)
}

// copyFirst copies at most limit bytes, and returns how many that were and their SHA-256.
func copyFirst(to, from string, limit int64) (n int64, digest string, err error) {
	in, err := os.Open(from)
	if err != nil {
		return 0, "", err
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		return 0, "", err
	}
	sum := sha256.New()
	n, err = io.Copy(io.MultiWriter(out, sum), io.LimitReader(in, limit))
	return n, hex.EncodeToString(sum.Sum(nil)), errors.Join(err, out.Close())
}
