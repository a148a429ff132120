package disk

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"banger/internal/host"
)

// Flatten writes what an attached disk reads as to the new raw file at path, sparse, and
// independent of all that the disk lies on. progress is told per cent, of 100; it may be
// nil. On error nothing is left.
func Flatten(ctx context.Context, a Attached, path string, progress func(done, total int64)) (err error) {
	if progress == nil {
		progress = func(int64, int64) {}
	}
	dst, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, dst.Close())
		if err != nil {
			err = errors.Join(makeError(path, err), os.Remove(path))
		}
	}()
	if whole, err := wholeFile(a); err != nil {
		return err
	} else if whole != nil {
		defer whole.Close()
		return copyWhole(ctx, dst, whole)
	}
	options, err := json.Marshal(blockDevice(a))
	if err != nil {
		return err
	}
	err = host.Run(ctx, host.Command{
		Path:   "qemu-img",
		Args:   []string{"convert", "-p", "-O", "raw", "-S", "4k", "json:" + string(options), path},
		Stdout: &percent{tell: progress},
	})
	if err != nil {
		return err
	}
	return dst.Sync()
}

// wholeFile opens a disk that is one raw file, whose holes the kernel tells; nil: it is none.
func wholeFile(a Attached) (*os.File, error) {
	if a.Format != "raw" || a.On != nil {
		return nil, nil
	}
	f, err := os.OpenFile(a.Path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func copyWhole(ctx context.Context, dst, src *os.File) error {
	info, err := src.Stat()
	if err != nil {
		return err
	}
	if unix.IoctlFileClone(int(dst.Fd()), int(src.Fd())) != nil { // where blocks can't be shared
		if err := CopySparse(ctx, dst, src); err != nil {
			return err
		}
	}
	if err := dst.Truncate(info.Size()); err != nil {
		return err
	}
	return dst.Sync()
}

// blockDevice names every file of the chain and its format to QEMU's tools, so that they
// believe no header.
func blockDevice(a Attached) map[string]any {
	protocol := "file"
	if info, err := os.Stat(a.Path); err == nil && info.Mode()&os.ModeDevice != 0 {
		protocol = "host_device"
	}
	d := map[string]any{"driver": a.Format, "file": map[string]any{"driver": protocol, "filename": a.Path}}
	if a.Format == "qcow2" {
		d["backing"] = nil
		if a.On != nil {
			d["backing"] = blockDevice(*a.On)
		}
	}
	return d
}

// percent reads qemu-img's "    (12.34/100%)\r".
type percent struct {
	tell func(done, total int64)
	line []byte
}

func (p *percent) Write(b []byte) (int, error) {
	for _, c := range b {
		if c != '\r' && c != '\n' {
			p.line = append(p.line, c)
			continue
		}
		text := strings.TrimSuffix(strings.TrimPrefix(string(bytes.TrimSpace(p.line)), "("), "/100%)")
		if done, err := strconv.ParseFloat(text, 64); err == nil {
			p.tell(int64(done), 100)
		}
		p.line = p.line[:0]
	}
	return len(b), nil
}
