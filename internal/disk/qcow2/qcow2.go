// Package qcow2 owns the disk driver for QEMU: an overlay file on a raw base, whose
// header it writes itself. It knows of the format only what a fresh overlay is made of;
// reading and writing the disk is QEMU's.
package qcow2

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"banger/internal/disk"
	"banger/internal/errs"
	"banger/internal/host"
)

const (
	fileName = "root.qcow2"
	tempName = "root.qcow2.new" // a volume that is not finished
)

// Driver makes qcow2 overlays. It has no state.
type Driver struct{}

var _ disk.Driver = Driver{}

// Name is "qcow2".
func (Driver) Name() string { return "qcow2" }

// Clone makes root.qcow2 in spec.Dir. It takes the same time for any base: three blocks
// are written, and the tables are otherwise holes.
//
// Nothing is synced, for that would be nearly all of the cost. Neither is it needed: the
// first flush by the guest that succeeds has synced this file, header and name included.
// If a power cut comes before that, no write was acknowledged to the guest as durable, and
// what is left, nothing or an overlay that Usage finds torn (errs.NotFound), may be made
// anew by another Clone.
func (d Driver) Clone(ctx context.Context, base disk.Base, spec disk.Spec) (disk.Volume, error) {
	size, err := disk.VirtualBytes(base, spec)
	if err != nil {
		return disk.Volume{}, err
	}
	if err := ctx.Err(); err != nil {
		return disk.Volume{}, err
	}
	if !filepath.IsAbs(base.Path) {
		return disk.Volume{}, fmt.Errorf("the path of the base, %q, is not absolute", base.Path)
	}
	pieces, fileBytes, err := encode(size, base.Path)
	if err != nil {
		return disk.Volume{}, errs.New(errs.Invalid, "a disk can't be made on %s", base.Path).Because(err)
	}
	temp, path := filepath.Join(spec.Dir, tempName), filepath.Join(spec.Dir, fileName)
	err = write(temp, pieces, fileBytes)
	if err == nil {
		err = host.Fault("rename a new disk")
	}
	if err == nil {
		err = os.Rename(temp, path)
	}
	if err != nil {
		return disk.Volume{}, errors.Join(cloneError(spec.Dir, err), d.Remove(context.WithoutCancel(ctx), spec.Dir))
	}
	return disk.Volume{Driver: d.Name(), Path: path, Format: "qcow2", VirtualBytes: size}, nil
}

func write(path string, pieces []piece, fileBytes int64) error {
	// What an attempt left is thrown away, not reused: its owner and mode are unknown.
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Truncate(fileBytes); err != nil {
		return err
	}
	for _, p := range pieces {
		if _, err := f.WriteAt(p.data, p.offset); err != nil {
			return err
		}
	}
	return f.Close()
}

func cloneError(dir string, err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return errs.New(errs.Unavailable, "there is no room for a disk in %s", dir).Because(err).
			Try("free some space there: banger rm removes VMs, banger image rm images")
	}
	return errs.New(errs.Internal, "the disk in %s can't be made", dir).Because(err)
}

// Remove takes away root.qcow2 and what an interrupted Clone has left.
func (Driver) Remove(_ context.Context, dir string) error {
	var failed []error
	for _, name := range []string{tempName, fileName} {
		if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			failed = append(failed, err)
		}
	}
	return errors.Join(failed...)
}

// Usage tells what the overlay takes on the host's disk. errs.NotFound: it is not there,
// or a power cut has kept it from ever being finished, so that it holds nothing.
func (Driver) Usage(v disk.Volume) (int64, error) {
	var st unix.Stat_t
	if err := unix.Stat(v.Path, &st); err != nil {
		if errors.Is(err, unix.ENOENT) {
			return 0, errs.New(errs.NotFound, "the disk %s is not there", v.Path)
		}
		return 0, &os.PathError{Op: "stat", Path: v.Path, Err: err}
	}
	if _, err := ReadHeader(v.Path); errors.Is(err, errTorn) {
		return 0, errs.New(errs.NotFound, "the disk %s was never finished", v.Path)
	} else if err != nil {
		return 0, errs.New(errs.Internal, "the disk %s is damaged", v.Path).Because(err)
	}
	return st.Blocks * 512, nil // st_blocks counts 512 bytes on every filesystem
}
