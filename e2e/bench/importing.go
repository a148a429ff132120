package main

import (
	"archive/tar"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

const (
	importLayers     = 10
	importLayerBytes = 1 << 30 / importLayers
)

// importRatio is banger image import of an OCI archive of 1 GiB in 10 layers against what it
// takes by hand: umoci unpack of the layout, and mkfs.ext4 -d of what that made.
func importRatio(b *bench) ([]Figure, error) {
	if _, err := exec.LookPath("umoci"); err != nil {
		return nil, errors.New("there is no umoci to compare with: make deps installs it")
	}
	layout, archive := filepath.Join(b.scratch, "layout"), filepath.Join(b.scratch, "archive.tar")
	if err := makeLayout(layout); err != nil {
		return nil, err
	}
	defer os.RemoveAll(layout)
	if _, err := b.command("tar", "-C", layout, "-cf", archive, "blobs", "index.json", "oci-layout"); err != nil {
		return nil, err
	}
	defer os.Remove(archive)
	bundle, fs := filepath.Join(b.scratch, "bundle"), filepath.Join(b.scratch, "fs")
	const n = 3
	ours, bare, err := 0.0, 0.0, error(nil)
	var a, c []float64
	for range n { // what each has made goes between the measurements
		if ours, err = timed(func() error {
			_, err := b.banger("image", "import", archive, "measured")
			return err
		}); err != nil {
			return nil, err
		}
		if bare, err = timed(func() error {
			if _, err := b.command("umoci", "unpack", "--image", layout+":latest", bundle); err != nil {
				return err
			}
			_, err := b.command("mkfs.ext4", "-q", "-F", "-b", "4096", "-d", filepath.Join(bundle, "rootfs"), fs, "5G")
			return err
		}); err != nil {
			return nil, err
		}
		if _, err := b.banger("image", "rm", "measured"); err != nil {
			return nil, err
		}
		if err := errors.Join(os.RemoveAll(bundle), os.Remove(fs)); err != nil {
			return nil, err
		}
		a, c = append(a, ours), append(c, bare)
	}
	return []Figure{{"import_ratio", median(a) / median(c), "ratio", n, median(c), "banger image import of 1 GiB in 10 layers; umoci unpack and mkfs.ext4 -d"}}, nil
}

// makeLayout makes an OCI layout whose layers have files of many sizes, which compress as
// programs do. It is the same each time.
func makeLayout(dir string) error {
	blobs := filepath.Join(dir, "blobs", "sha256")
	if err := os.MkdirAll(blobs, 0o755); err != nil {
		return err
	}
	m := v1.Manifest{SchemaVersion: 2, MediaType: types.OCIManifestSchema1}
	config := v1.ConfigFile{Architecture: "amd64", OS: "linux", RootFS: v1.RootFS{Type: "layers"}}
	r := rand.New(rand.NewPCG(1, 2))
	for i := range importLayers {
		d, diff, err := makeLayer(blobs, i, r)
		if err != nil {
			return err
		}
		m.Layers = append(m.Layers, d)
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, diff)
	}
	var err error
	document := func(v any, kind types.MediaType) v1.Descriptor {
		text, jsonErr := json.Marshal(v)
		sum := sha256.Sum256(text)
		d := v1.Descriptor{MediaType: kind, Size: int64(len(text)), Digest: v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(sum[:])}}
		err = errors.Join(err, jsonErr, os.WriteFile(filepath.Join(blobs, d.Digest.Hex), text, 0o644))
		return d
	}
	m.Config = document(config, types.OCIConfigJSON)
	top := document(m, types.OCIManifestSchema1)
	top.Annotations = map[string]string{"org.opencontainers.image.ref.name": "latest"}
	index, jsonErr := json.Marshal(v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex, Manifests: []v1.Descriptor{top}})
	return errors.Join(err, jsonErr, os.WriteFile(filepath.Join(dir, "index.json"), index, 0o644),
		os.WriteFile(filepath.Join(dir, "oci-layout"), []byte(`{"imageLayoutVersion":"1.0.0"}`), 0o644))
}

func makeLayer(blobs string, i int, r *rand.Rand) (d v1.Descriptor, diff v1.Hash, err error) {
	f, err := os.CreateTemp(blobs, "layer-")
	if err != nil {
		return d, diff, err
	}
	defer f.Close()
	packed, plain := sha256.New(), sha256.New()
	z := gzip.NewWriter(io.MultiWriter(f, packed))
	w := tar.NewWriter(io.MultiWriter(z, plain))
	for n, written := 0, int64(0); written < importLayerBytes; n++ {
		size := int64(1) << (8 + r.IntN(13)) // 256 bytes to 1 MiB
		size += r.Int64N(size)
		name := fmt.Sprintf("usr/share/part-%d/%d/file-%d", i, n/100, n)
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: size}); err != nil {
			return d, diff, err
		}
		if _, err := w.Write(likeAProgram(r, size)); err != nil {
			return d, diff, err
		}
		written += size
	}
	if err := errors.Join(w.Close(), z.Close()); err != nil {
		return d, diff, err
	}
	info, err := f.Stat()
	if err != nil {
		return d, diff, err
	}
	id := func(h hash.Hash) v1.Hash { return v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(h.Sum(nil))} }
	d = v1.Descriptor{MediaType: types.OCILayer, Size: info.Size(), Digest: id(packed)}
	return d, id(plain), os.Rename(f.Name(), filepath.Join(blobs, d.Digest.Hex))
}

// likeAProgram makes bytes of which gzip leaves some 40 %.
func likeAProgram(r *rand.Rand, size int64) []byte {
	out := make([]byte, 0, size+64)
	var words [64][8]byte
	for i := range words {
		for j := range words[i] {
			words[i][j] = byte(r.Uint32())
		}
	}
	for int64(len(out)) < size {
		x := r.Uint64()
		if x%3 == 0 {
			out = append(out, byte(x>>8), byte(x>>16), byte(x>>24), byte(x>>32))
		} else {
			out = append(out, words[(x>>8)%64][:]...)
		}
	}
	return out[:size]
}
