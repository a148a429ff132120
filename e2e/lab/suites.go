package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// suite is the tests of a package, run in the lab.
type suite struct {
	pkg   string        // path in the checkout
	tests string        // pattern of the tests to run, as of go test -run; "" for all
	long  string        // pattern of tests that take many minutes: they are run on request too
	short bool          // it is part of a short run: what is quick, and what only the lab can show
	after string        // pattern of tests to run once the lab has been booted anew
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
	{pkg: "internal/network", limit: 15 * time.Minute},
	{pkg: "internal/dns", limit: 10 * time.Minute},
	{pkg: "internal/dns/publish", tests: "RealResolved", short: true, limit: 5 * time.Minute},
	// With TCG inside of TCG nothing is proven and a boot takes a minute.
	{pkg: "internal/hypervisor/qemu", tests: "KVM", limit: 15 * time.Minute},
	{pkg: "internal/hypervisor/firecracker", tests: "Conformance", long: "Stream", limit: 30 * time.Minute},
	{pkg: "internal/hypervisor/proof", tests: "KVM", short: true, limit: 5 * time.Minute},
	{pkg: "e2e", tests: "KVM|DiskDrivers/dm|DeviceMapper|Firecracker$|FirecrackerWarm|FirecrackerSettings|ConnectionsOutlive", long: "FirecrackerIsCutShort", limit: 45 * time.Minute},
	{pkg: packageSuite, tests: "TestPackage", after: "TestReboot|TestRemoval", limit: 15 * time.Minute},
	{pkg: packageSuite, tests: "TestFirewalls", limit: 15 * time.Minute},
}

func (s suite) String() string {
	if s.tests == "" {
		return s.pkg
	}
	return s.pkg + " -run " + s.tests
}

// binary is the name of the suite's compiled tests.
func (s suite) binary() string { return strings.ReplaceAll(s.pkg, "/", "-") + ".test" }

// pattern is that of its tests, without those after a reboot.
func (s suite) pattern(long bool) string {
	if long && s.long != "" {
		return s.tests + "|" + s.long
	}
	return s.tests
}

// command is how tests of the suite are run in the lab: in a directory of its own, as go test does.
func (s suite) command(tests string) []string {
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

// packageSuite is the package whose tests install Debian's package of banger: the older, and
// then the newer.
const packageSuite = "e2e/installed"

// makePackages makes those, as make deb does, of this checkout.
func (l *lab) makePackages(ctx context.Context) error {
	for _, version := range []string{"v0.1.0", "v0.2.0"} {
		c := exec.CommandContext(ctx, "make", "-s", "-C", l.root, "deb", "VERSION="+version, "BIN=build/lab/bin", "DEB="+l.tests())
		c.Stdout, c.Stderr = os.Stderr, os.Stderr
		if err := c.Run(); err != nil {
			return fmt.Errorf("make deb: %w", err)
		}
	}
	return nil
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
		binary := filepath.Join(l.tests(), s.binary())
		if exists(binary) { // another suite of the package's has it
			continue
		}
		if err := l.goTool(ctx, "test", "-c", "-o", binary, "./"+s.pkg); err != nil {
			return err
		}
	}
	if slices.ContainsFunc(chosen, func(s suite) bool { return s.pkg == packageSuite }) {
		if err := l.makePackages(ctx); err != nil {
			return err
		}
	}
	return l.goTool(ctx, "build", "-o", filepath.Join(l.tests(), guestBinary), "./internal/hypervisor/hypervisortest/guest")
}
