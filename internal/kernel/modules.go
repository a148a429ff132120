package kernel

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
)

// driver is something the initramfs may have to load to reach the root disk or the
// control channel.
type driver struct {
	name string
	// condition tells the guest agent when to load it: "" always, "virtio:N" when a
	// virtio device with that id exists, "cmdline:WORD" when the kernel's command line has
	// an argument of that name.
	condition string
	// need names the group of which the kernel must have at least one; "" means that
	// the machine does without.
	need string
}

// drivers in the order they are loaded. The ids are those of the virtio specification.
var drivers = []driver{
	{name: "virtio", need: "virtio"},
	{name: "virtio_ring", need: "virtio_ring"},
	{name: "virtio_pci", need: "virtio_pci or virtio_mmio"},
	{name: "virtio_mmio", condition: "cmdline:virtio_mmio.device", need: "virtio_pci or virtio_mmio"},
	{name: "virtio_blk", condition: "virtio:2", need: "virtio_blk"},
	{name: "virtio_console", condition: "virtio:3"},
	{name: "virtio_net", condition: "virtio:1"},
	{name: "virtio_rng", condition: "virtio:4"},
	{name: "virtio_balloon", condition: "virtio:5"},
	{name: "vsock", condition: "virtio:19"},
	{name: "vmw_vsock_virtio_transport", condition: "virtio:19"},
	// Filesystems look for these by name at mount time, beyond what modules.dep says.
	{name: "crc32c_generic"},
	{name: "ext4", need: "ext4"},
}

// ModuleLoad is one module of the initramfs.
type ModuleLoad struct {
	Path      string // relative to the modules directory, as in modules.dep
	Condition string // as a driver's; "virtio:N,M" when a device of either kind will do
}

// moduleIndex is what modules.dep and modules.builtin say.
type moduleIndex struct {
	path    map[string]string   // name → path
	deps    map[string][]string // path → paths it needs, in modules.dep's order
	builtin map[string]bool     // names
}

// moduleName is the name by which the kernel knows the module in a file: its base name
// without suffixes, with "_" for "-".
func moduleName(p string) string {
	base := path.Base(p)
	base, _, _ = strings.Cut(base, ".ko")
	return strings.ReplaceAll(base, "-", "_")
}

// cleanModulePath refuses what leaves the modules directory or would break a line of the
// load list.
func cleanModulePath(p string) (string, error) {
	if p == "" || path.IsAbs(p) || path.Clean(p) != p || p == ".." || strings.HasPrefix(p, "../") ||
		!strings.Contains(path.Base(p), ".ko") || strings.ContainsFunc(p, func(r rune) bool { return r < 0x20 || r == 0x7f }) {
		return "", fmt.Errorf("%q is no path of a module", p)
	}
	return p, nil
}

// parseModules reads modules.dep ("path: path path…") and modules.builtin (a path a line).
func parseModules(dep, builtin io.Reader) (moduleIndex, error) {
	ix := moduleIndex{path: map[string]string{}, deps: map[string][]string{}, builtin: map[string]bool{}}
	err := eachLine(dep, func(line string) error {
		left, right, ok := strings.Cut(line, ":")
		if !ok {
			return errors.New("no colon")
		}
		mod, err := cleanModulePath(left)
		if err != nil {
			return err
		}
		deps := strings.Fields(right)
		for _, d := range deps {
			if _, err := cleanModulePath(d); err != nil {
				return err
			}
		}
		ix.path[moduleName(mod)], ix.deps[mod] = mod, deps
		return nil
	})
	if err != nil {
		return ix, fmt.Errorf("modules.dep: %w", err)
	}
	err = eachLine(builtin, func(line string) error {
		mod, err := cleanModulePath(line)
		if err == nil {
			ix.builtin[moduleName(mod)] = true
		}
		return err
	})
	if err != nil {
		return ix, fmt.Errorf("modules.builtin: %w", err)
	}
	return ix, nil
}

func eachLine(r io.Reader, do func(string) error) error {
	scan := bufio.NewScanner(r)
	scan.Buffer(nil, 1<<20)
	for n := 1; scan.Scan(); n++ {
		line := strings.TrimSpace(scan.Text())
		if line == "" || line[0] == '#' {
			continue
		}
		if err := do(line); err != nil {
			return fmt.Errorf("line %d: %w", n, err)
		}
	}
	return scan.Err()
}

// plan lists the modules that drivers need, each after those it depends on. It fails if
// the kernel lacks a driver that no machine does without.
func (ix moduleIndex) plan(drivers []driver) ([]ModuleLoad, error) {
	if missing := ix.missing(drivers); len(missing) > 0 {
		return nil, fmt.Errorf("the kernel has no driver %s, neither as a module nor built in", strings.Join(missing, ", "))
	}
	var loads []ModuleLoad
	at := map[string]int{} // path → index in loads
	for _, d := range drivers {
		mod, ok := ix.path[d.name]
		if !ok {
			continue // built in, or not needed
		}
		for _, p := range ix.closure(mod) {
			if i, seen := at[p]; seen {
				loads[i].Condition = either(loads[i].Condition, d.condition)
				continue
			}
			at[p] = len(loads)
			loads = append(loads, ModuleLoad{Path: p, Condition: d.condition})
		}
	}
	return loads, nil
}

// either is the condition that holds when a or b does; where it can't be said, always.
func either(a, b string) string {
	aKind, aValue, _ := strings.Cut(a, ":")
	bKind, bValue, _ := strings.Cut(b, ":")
	switch {
	case a == b:
		return a
	case aKind != "virtio" || bKind != "virtio":
		return ""
	case slices.Contains(strings.Split(aValue, ","), bValue):
		return a
	}
	return a + "," + bValue
}

// missing returns the groups of needed drivers of which the kernel has none.
func (ix moduleIndex) missing(drivers []driver) []string {
	var order []string
	have := map[string]bool{}
	for _, d := range drivers {
		if d.need == "" {
			continue
		}
		if _, seen := have[d.need]; !seen {
			order = append(order, d.need)
		}
		have[d.need] = have[d.need] || ix.path[d.name] != "" || ix.builtin[d.name]
	}
	return slices.DeleteFunc(order, func(need string) bool { return have[need] })
}

// closure returns mod and all it needs, dependencies first. A cycle, which depmod never
// writes, ends where it closes.
func (ix moduleIndex) closure(mod string) []string {
	var out []string
	seen := map[string]bool{}
	var visit func(string)
	visit = func(m string) {
		if seen[m] {
			return
		}
		seen[m] = true
		for _, d := range ix.deps[m] {
			visit(d)
		}
		out = append(out, m)
	}
	visit(mod)
	return out
}
