package dm

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"banger/internal/disk"
	"banger/internal/disk/dm/devmapper"
	"banger/internal/disk/loop"
	"banger/internal/errs"
)

// prefix begins the names of all devices of banger's.
const prefix = "banger-"

// topName is the name of the device that a VMM opens. Those below it are called
// banger-ID-1, banger-ID-2 and so on, the lowest first.
func topName(id string) string { return prefix + id }

func checkID(id string) error {
	if id == "" || len(id) > 64 || strings.ContainsFunc(id, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < '0' || r > '9')
	}) {
		return errs.New(errs.Invalid, "%q can't be part of a device's name", id)
	}
	return nil
}

// devicesOf picks the devices of an id, in the order in which they can be removed.
func devicesOf(id string, all []string) []string {
	depth := map[string]int{}
	var found []string
	for _, name := range all {
		rest, ours := strings.CutPrefix(name, topName(id))
		n, err := strconv.Atoi(strings.TrimPrefix(rest, "-"))
		if !ours || rest != "" && (err != nil || rest[0] != '-') {
			continue
		}
		if rest == "" {
			n = int(^uint(0) >> 1) // it is above all others
		}
		depth[name] = n
		found = append(found, name)
	}
	slices.SortFunc(found, func(a, b string) int { return cmp.Compare(depth[b], depth[a]) })
	return found
}

// stack is the devices of one volume in the making.
type stack struct {
	*Driver
	home  disk.Home
	below int // devices made below the top
	open  []io.Closer
	zeros layer // once something has to be made larger
	top   devmapper.Device
}

// layer is what the next device is put on.
type layer struct {
	major, minor uint32
	sectors      uint64
}

func (l layer) String() string { return fmt.Sprintf("%d:%d", l.major, l.minor) }

// release lets go of the loop devices.
func (s *stack) release() {
	for _, c := range s.open {
		c.Close() // it was opened to keep it
	}
}

// build makes the device that shows b for writing, and those that it takes below it.
func (s *stack) build(ctx context.Context, b disk.Base) error {
	on, err := s.readOnly(ctx, *b.On)
	if err != nil {
		return err
	}
	top := func() string { return topName(s.home.ID) }
	_, err = s.snapshot(ctx, top, b, on, false)
	return err
}

// readOnly makes the device that shows b for reading. Every stack has its own, but for the
// loop device of the image: the kernel takes two snapshots with one device of changes for
// the hand-over from one to the other.
func (s *stack) readOnly(ctx context.Context, b disk.Base) (layer, error) {
	if b.On == nil {
		dev, err := s.loops.OpenShared(ctx, b.Path, loop.Direct)
		if err != nil {
			return layer{}, err
		}
		s.open = append(s.open, dev)
		return layer{dev.Major, dev.Minor, sectors(b.Bytes)}, nil
	}
	on, err := s.readOnly(ctx, *b.On)
	if err != nil {
		return layer{}, err
	}
	return s.snapshot(ctx, s.nameBelow, b, on, true)
}

func (s *stack) nameBelow() string {
	s.below++
	return fmt.Sprintf("%s-%d", topName(s.home.ID), s.below)
}

// snapshot makes the device that shows the changes of b's file on what is below. Its name is
// asked for last, so that it comes after those of what it lies on.
func (s *stack) snapshot(ctx context.Context, name func() string, b disk.Base, on layer, readOnly bool) (layer, error) {
	on, err := s.extend(ctx, on, sectors(b.Bytes))
	if err != nil {
		return layer{}, err
	}
	cow, err := s.loops.OpenNew(ctx, b.Path, readOnly)
	if err != nil {
		return layer{}, err
	}
	s.open = append(s.open, cow)
	// P: the changes outlive the device; O: it says so when they no longer fit. What the
	// guest discards is given back to the host's filesystem.
	params := fmt.Sprintf("%s %d:%d PO %d", on, cow.Major, cow.Minor, chunkSectors)
	if !readOnly {
		params += " 1 discard_zeroes_cow"
	}
	return s.create(ctx, name(), readOnly, devmapper.Target{Sectors: sectors(b.Bytes), Type: "snapshot", Params: params})
}

// zerosBytes is the length of the file of zeros: small enough for every filesystem, and
// repeated as often as it takes.
const zerosBytes = 1 << 40

// extend makes what is below as large as what lies on it, with zeros: a snapshot can't be
// larger than its origin. They come from a file without a block, over and over: of the
// kernel's own target "zero" a snapshot can't be told what the guest discards.
func (s *stack) extend(ctx context.Context, on layer, want uint64) (layer, error) {
	if on.sectors == want {
		return on, nil
	}
	if s.zeros.sectors == 0 {
		if err := s.openZeros(ctx); err != nil {
			return layer{}, err
		}
	}
	table := []devmapper.Target{{Sectors: on.sectors, Type: "linear", Params: on.String() + " 0"}}
	for at := on.sectors; at < want; at += s.zeros.sectors {
		table = append(table, devmapper.Target{Start: at, Sectors: min(want-at, s.zeros.sectors), Type: "linear", Params: s.zeros.String() + " 0"})
	}
	return s.create(ctx, s.nameBelow(), true, table...)
}

// openZeros makes the device of zeros.
func (s *stack) openZeros(ctx context.Context) error {
	path := filepath.Join(s.home.Dir, zerosName)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	// Cut first, it holds no byte that someone may have written to it.
	err = errors.Join(f.Truncate(0), f.Truncate(zerosBytes), f.Close())
	if err != nil {
		return err
	}
	dev, err := s.loops.OpenNew(ctx, path, true)
	if err != nil {
		return err
	}
	s.open = append(s.open, dev)
	s.zeros = layer{dev.Major, dev.Minor, sectors(zerosBytes)}
	return nil
}

func (s *stack) create(ctx context.Context, name string, readOnly bool, table ...devmapper.Target) (layer, error) {
	dev, err := s.mapper.Create(ctx, name, strings.ToUpper(prefix)+strings.TrimPrefix(name, prefix), readOnly, table)
	if err != nil {
		return layer{}, err
	}
	s.top = dev
	end := table[len(table)-1]
	return layer{dev.Major, dev.Minor, end.Start + end.Sectors}, nil
}

func sectors(bytes int64) uint64 { return uint64(bytes / disk.SectorBytes) }
