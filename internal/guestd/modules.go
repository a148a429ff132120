package guestd

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// moduleList is the initramfs's list of modules in load order, one "path<TAB>condition" a
// line. Without it everything needed is built into the kernel.
const moduleList = "/banger/modules"

// module is a line of the list.
type module struct {
	path    string
	virtio  []uint64 // load only if a virtio device with one of these ids is there
	cmdline string   // load only if the kernel's command line contains this
}

func parseModules(list []byte) ([]module, error) {
	var mods []module
	lines := bufio.NewScanner(bytes.NewReader(list))
	for lines.Scan() {
		path, condition, _ := strings.Cut(lines.Text(), "\t")
		if path == "" {
			continue
		}
		m := module{path: path}
		kind, value, _ := strings.Cut(condition, ":")
		switch kind {
		case "":
		case "virtio":
			for id := range strings.SplitSeq(value, ",") {
				n, err := strconv.ParseUint(id, 10, 32)
				if err != nil {
					return nil, fmt.Errorf("module %s: condition %q: %w", path, condition, err)
				}
				m.virtio = append(m.virtio, n)
			}
		case "cmdline":
			m.cmdline = value
		default:
			return nil, fmt.Errorf("module %s: unknown condition %q", path, condition)
		}
		mods = append(mods, m)
	}
	return mods, lines.Err()
}

// wanted tells whether the condition holds.
func (m module) wanted(virtioIDs []uint64, cmdline string) bool {
	if m.cmdline != "" {
		return strings.Contains(cmdline, m.cmdline)
	}
	return len(m.virtio) == 0 || slices.ContainsFunc(m.virtio, func(id uint64) bool {
		return slices.Contains(virtioIDs, id)
	})
}

// virtioBlock is the kind of virtio devices that are disks.
const virtioBlock = 2

// inStages parts the list: what others count on, then what only disks need, and beside that
// what no disk needs. Each part keeps its order, and needs nothing of a later or other one.
func inStages(mods []module) (first, disks, others []module) {
	for _, m := range mods {
		switch {
		case slices.Equal(m.virtio, []uint64{virtioBlock}):
			disks = append(disks, m)
		case len(m.virtio) == 0 || slices.Contains(m.virtio, virtioBlock):
			first = append(first, m)
		default:
			others = append(others, m)
		}
	}
	return first, disks, others
}

// loadModules loads what this machine needs of the list to mount its disks, and goes on with
// the other devices' modules, which take the kernel as long again: rest waits for those.
func loadModules(cmdline string) (rest func() error, err error) {
	list, err := os.ReadFile(moduleList)
	if errors.Is(err, os.ErrNotExist) {
		return func() error { return nil }, nil
	}
	if err != nil {
		return nil, err
	}
	mods, err := parseModules(list)
	if err != nil {
		return nil, err
	}
	first, disks, others := inStages(mods)
	if err := loadAll(first, cmdline); err != nil {
		return nil, err
	}
	done := make(chan error, 1)
	go func() { done <- loadAll(others, cmdline) }()
	return func() error { return <-done }, loadAll(disks, cmdline)
}

func loadAll(mods []module, cmdline string) error {
	for _, m := range mods {
		// Read again each time: the modules before brought devices.
		if !m.wanted(virtioIDs(), cmdline) {
			continue
		}
		if err := loadModule(m.path); err != nil {
			return fmt.Errorf("load module %s: %w", m.path, err)
		}
	}
	return nil
}

// virtioIDs lists the kinds of virtio devices that are there; the kernel writes them in hex.
func virtioIDs() []uint64 {
	files, _ := filepath.Glob("/sys/bus/virtio/devices/*/device") // the pattern is well-formed
	var ids []uint64
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		if id, err := strconv.ParseUint(strings.TrimSpace(string(text)), 0, 32); err == nil {
			ids = append(ids, id)
		}
	}
	return ids
}

func loadModule(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	err = unix.FinitModule(int(f.Fd()), "", 0)
	switch {
	case errors.Is(err, unix.EEXIST): // loaded, or built in
		return nil
	case errors.Is(err, unix.ENOENT): // what the kernel says of a symbol that nothing provides
		return errors.New("it needs a module that was not loaded before it")
	}
	return err
}
