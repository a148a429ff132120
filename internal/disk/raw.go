package disk

import (
	"context"
	"fmt"
	"os"
)

// RawFile is what the drivers share whose volume is one whole raw file: all but making it.
type RawFile struct {
	Driver string                                              // its name
	Fill   func(ctx context.Context, dst, base *os.File) error // makes dst read as base
}

const rawName = "root.img"

// Name is the driver's name.
func (r RawFile) Name() string { return r.Driver }

// Clone makes root.img in spec.Dir.
func (r RawFile) Clone(ctx context.Context, base Base, spec Spec) (Volume, error) {
	size, err := VirtualBytes(base, spec)
	if err != nil {
		return Volume{}, err
	}
	if base.On != nil {
		return Volume{}, fmt.Errorf("%s is no whole disk", base.Path)
	}
	src, err := base.Open()
	if err != nil {
		return Volume{}, err
	}
	defer src.Close()
	path, err := MakeFile(ctx, spec.Dir, rawName, func(dst *os.File) error {
		if err := r.Fill(ctx, dst, src); err != nil {
			return err
		}
		return dst.Truncate(size)
	})
	if err != nil {
		return Volume{}, err
	}
	return Volume{Driver: r.Driver, Path: path, VirtualBytes: size}, nil
}

// Copy copies the file.
func (r RawFile) Copy(ctx context.Context, v Volume, home Home) (Volume, error) {
	return v.CopyTo(ctx, home.Dir, rawName)
}

// Attach checks the file; there is nothing else to it.
func (r RawFile) Attach(_ context.Context, _ Home, v Volume) (Attached, error) {
	f, err := v.OpenFile(v.VirtualBytes)
	if err != nil {
		return Attached{}, err
	}
	return Attached{Path: v.Path, Format: "raw"}, f.Close()
}

// Detach has nothing to do.
func (r RawFile) Detach(context.Context, Home) error { return nil }

// Check has nothing to tell: a file that can't be written to now can be later.
func (r RawFile) Check(Home) error { return nil }

// Remove takes away root.img.
func (r RawFile) Remove(_ context.Context, home Home) error { return RemoveFile(home.Dir, rawName) }
