package main

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
)

// install copies into the lab what the suites need, in place of what an earlier run has
// left there.
func (l *lab) install(ctx context.Context, chosen []suite) error {
	dirs := []string{inLab, path.Join(inLab, "runtime/kernels"), path.Join(inLab, "runtime/images"), path.Join(inLab, "bin"), path.Join(inLab, "bin-faults")}
	copies := [][2]string{
		{l.tests(), path.Join(inLab, "tests")},
		{filepath.Join(l.root, "runtime/kernels/debian"), path.Join(inLab, "runtime/kernels/debian")},
		{filepath.Join(l.root, "runtime/images/tiny"), path.Join(inLab, "runtime/images/tiny")},
	}
	record := filepath.Join(l.tests(), "bundle.json")
	if err := l.recordOf(record, "kernel/debian", "image/tiny"); err != nil {
		return err
	}
	copies = append(copies, [2]string{record, path.Join(inLab, "runtime/bundle.json")})
	for _, bin := range []string{"bin", "bin-faults"} {
		for _, program := range []string{"banger", "bangerd"} { // which has banger-guest in it
			copies = append(copies, [2]string{filepath.Join(l.root, "build", bin, program), path.Join(inLab, bin, program)})
		}
	}
	for _, s := range chosen {
		src := path.Join(inLab, "src", s.pkg)
		dirs = append(dirs, src)
		if data := filepath.Join(l.root, s.pkg, "testdata"); exists(data) {
			copies = append(copies, [2]string{data, path.Join(src, "testdata")})
		}
	}
	// Programs that Debian does not have come from this host, if it has them.
	for _, program := range []string{"firecracker", "jailer", "firecracker-v1.7.0"} {
		if path, err := exec.LookPath(program); err == nil {
			copies = append(copies, [2]string{path, "/usr/local/bin/" + program})
		}
	}
	for _, argv := range [][]string{
		{"udevadm", "settle"}, // it loads modules, which no unit of the boot waits for
		{"rm", "-rf", inLab},
		append([]string{"mkdir", "-p"}, dirs...),
	} {
		if err := l.exec(ctx, os.Stdout, os.Stderr, argv); err != nil {
			return err
		}
	}
	for _, c := range copies {
		if err := l.command(ctx, "cp", c[0], vmName+":"+c[1]); err != nil {
			return err
		}
	}
	return nil
}

// recordOf writes the record of a bundle that has only these artefacts of the checkout's.
func (l *lab) recordOf(path string, names ...string) error {
	text, err := os.ReadFile(filepath.Join(l.root, "runtime/bundle.json"))
	if err != nil {
		return err
	}
	var record map[string]any
	if err := json.Unmarshal(text, &record); err != nil {
		return err
	}
	all, _ := record["artefacts"].([]any)
	record["artefacts"] = slices.DeleteFunc(all, func(a any) bool {
		artefact, _ := a.(map[string]any)
		name, _ := artefact["name"].(string)
		return !slices.Contains(names, name)
	})
	if text, err = json.MarshalIndent(record, "", "  "); err != nil {
		return err
	}
	return os.WriteFile(path, text, 0o644)
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
