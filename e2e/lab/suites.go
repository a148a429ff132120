package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"time"
)

// suite is the tests of a package, run in the lab.
type suite struct {
	pkg   string        // path in the checkout
	tests string        // pattern of the tests to run, as of go test -run; "" for all
	long  string        // pattern of tests that take many minutes: they are run on request too
	short bool          // it is part of a short run: what is quick, and what only the lab can show
	limit time.Duration // of the whole suite; it is no measure, for the host may be busy
}

// suites is what the lab is for: tests of what a host offers, which the machines that
// banger is developed on need not have. Each skips, or tests less, elsewhere.
var suites = []suite{
	{pkg: "e2e/lab", tests: "TestHost", short: true, limit: 5 * time.Minute},
	{pkg: "internal/host", limit: 5 * time.Minute},
	{pkg: "internal/jail", short: true, limit: 5 * time.Minute},
	{pkg: "internal/disk/reflink", limit: 10 * time.Minute},
	{pkg: "internal/disk/loop", short: true, limit: 5 * time.Minute},
	{pkg: "internal/disk/dm", short: true, limit: 10 * time.Minute},
	{pkg: "internal/disk/dm/devmapper", short: true, limit: 5 * time.Minute},
	{pkg: "internal/dns/publish", tests: "RealResolved", short: true, limit: 5 * time.Minute},
	// With TCG inside of TCG nothing is proven and a boot takes a minute.
	{pkg: "internal/hypervisor/qemu", tests: "KVM", limit: 15 * time.Minute},
	{pkg: "internal/hypervisor/firecracker", tests: "Conformance", limit: 15 * time.Minute},
	{pkg: "internal/hypervisor/proof", tests: "KVM", short: true, limit: 5 * time.Minute},
	{pkg: "e2e", tests: "KVM|DiskDrivers/dm|Firecracker$|FirecrackerWarm", long: "FirecrackerIsCutShort", limit: 45 * time.Minute},
}

func (s suite) String() string {
	if s.tests == "" {
		return s.pkg
	}
	return s.pkg + " -run " + s.tests
}

// binary is the name of the suite's compiled tests.
func (s suite) binary() string { return strings.ReplaceAll(s.pkg, "/", "-") + ".test" }

// command is how the suite is run in the lab: in a directory of its own, as go test does.
func (s suite) command(long bool) []string {
	tests := s.tests
	if long && s.long != "" {
		tests += "|" + s.long
	}
	return []string{
		"env", "-C", path.Join(inLab, "src", s.pkg),
		"BANGER_LAB=1", // for tests that are about the lab itself
		"BANGER_BIN=" + path.Join(inLab, "bin"),
		"BANGER_RUNTIME_DIR=" + path.Join(inLab, "runtime"),
		"BANGER_TEST_GUEST=" + path.Join(inLab, "tests", guestBinary),
		path.Join(inLab, "tests", s.binary()), "-test.v", "-test.run=" + tests, fmt.Sprintf("-test.timeout=%v", s.limit),
	}
}

// benchBinary is the program that measures.
const benchBinary = "bench"

// benchCommand is how a measurement is taken in the lab.
func benchCommand(name string) []string {
	return []string{
		"env", "-C", inLab, "BANGER_BIN=" + path.Join(inLab, "bin"), "BANGER_RUNTIME_DIR=" + path.Join(inLab, "runtime"),
		path.Join(inLab, "tests", benchBinary), "-only", name,
	}
}

// guestBinary is the guest of hypervisortest, which tests can't build where there is no Go.
const guestBinary = "guest"

// compile makes the suites' binaries, to run without Go or a C library.
func (l *lab) compile(ctx context.Context, chosen []suite) error {
	if err := os.RemoveAll(l.tests()); err != nil {
		return err
	}
	if err := os.MkdirAll(l.tests(), 0o755); err != nil {
		return err
	}
	for _, s := range chosen {
		if err := l.goTool(ctx, "test", "-c", "-o", filepath.Join(l.tests(), s.binary()), "./"+s.pkg); err != nil {
			return err
		}
	}
	return l.goTool(ctx, "build", "-o", filepath.Join(l.tests(), guestBinary), "./internal/hypervisor/hypervisortest/guest")
}

// install copies into the lab what the suites need, in place of what an earlier run has
// left there.
func (l *lab) install(ctx context.Context, chosen []suite) error {
	dirs := []string{inLab, path.Join(inLab, "runtime/kernels"), path.Join(inLab, "runtime/images"), path.Join(inLab, "bin"), path.Join(inLab, "bin-faults")}
	copies := [][2]string{
		{l.tests(), path.Join(inLab, "tests")},
		{filepath.Join(l.root, "runtime/bundle.json"), path.Join(inLab, "runtime/bundle.json")},
		{filepath.Join(l.root, "runtime/kernels/debian"), path.Join(inLab, "runtime/kernels/debian")},
		{filepath.Join(l.root, "runtime/images/tiny"), path.Join(inLab, "runtime/images/tiny")},
	}
	for _, bin := range []string{"bin", "bin-faults"} {
		for _, program := range []string{"banger", "bangerd"} { // which has banger-guest in it
			copies = append(copies, [2]string{filepath.Join(l.root, "build", bin, program), path.Join(inLab, bin, program)})
		}
	}
	for _, s := range chosen {
		src := path.Join(inLab, "src", s.pkg)
		dirs = append(dirs, src)
		if data := filepath.Join(l.root, s.pkg, "testdata"); isDir(data) {
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

func isDir(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}
