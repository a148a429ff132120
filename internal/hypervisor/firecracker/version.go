package firecracker

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"banger/internal/errs"
	"banger/internal/host"
)

// version is that of a Firecracker: of 1.14.1, major 1 and minor 14. Patches change nothing
// that matters here.
type version struct{ major, minor int }

// The versions whose API this package knows.
var (
	oldest = version{1, 7}
	newest = version{1, 17}

	savesSince     = version{1, 12}
	reportingSince = version{1, 14}
	serialSince    = version{1, 16}
	hugePagesSince = version{1, 11}
)

func (v version) String() string { return fmt.Sprintf("%d.%d", v.major, v.minor) }

// before tells whether v is older than w.
func (v version) before(w version) bool {
	return v.major < w.major || v.major == w.major && v.minor < w.minor
}

// parseVersion reads "1.14.1", also with a v in front and more behind.
func parseVersion(s string) (version, error) {
	parts := strings.SplitN(strings.TrimPrefix(s, "v"), ".", 3)
	if len(parts) == 3 {
		major, err := strconv.ParseUint(parts[0], 10, 16)
		minor, err2 := strconv.ParseUint(parts[1], 10, 16)
		if err == nil && err2 == nil {
			return version{int(major), int(minor)}, nil
		}
	}
	return version{}, errs.New(errs.Unavailable, "Firecracker gives its version as %q, which is none", printable(s))
}

// known is the version of a program, for as long as its file stays as it is.
type known struct {
	file    string
	size    int64
	changed time.Time
	version string
}

// Version returns the version of the Firecracker that is installed, "1.14.1". errs.Unavailable
// if there is none, or one that can't be used.
func (h *Hypervisor) Version(ctx context.Context) (string, error) {
	path, err := host.LookPath(h.program())
	if err != nil {
		return "", err
	}
	info, err := os.Stat(path)
	if err != nil {
		return "", err
	}
	h.asking.Lock()
	defer h.asking.Unlock()
	if k := (known{path, info.Size(), info.ModTime(), h.known.version}); k == h.known {
		return k.version, nil
	}
	out, err := host.Output(ctx, host.Command{Path: path, Args: []string{"--version"}})
	if err != nil {
		return "", errs.New(errs.Unavailable, "Firecracker does not tell its version").Because(err)
	}
	// "Firecracker v1.14.1", and an empty line.
	line, _, _ := strings.Cut(string(out), "\n")
	text := strings.TrimPrefix(strings.TrimSpace(line), "Firecracker v")
	v, err := parseVersion(text)
	if err == nil {
		_, err = featuresOf(v)
	}
	if err != nil {
		return "", err
	}
	h.known = known{path, info.Size(), info.ModTime(), text}
	return text, nil
}

// Untested tells what people should know of a version that is used: a sentence, or "".
func Untested(text string) string {
	v, err := parseVersion(text)
	switch {
	case err != nil:
		return err.Error()
	case newest.before(v):
		return fmt.Sprintf("Firecracker %s is newer than %s, the newest that banger is made for", text, newest)
	}
	return Unfit(text)
}

// Unfit tells why VMs are not run by a version that nobody has asked for: a sentence, or "".
func Unfit(text string) string {
	v, err := parseVersion(text)
	switch {
	case err != nil:
		return err.Error()
	case !v.before(version{1, 8}):
		return ""
	}
	return fmt.Sprintf("Firecracker %s tells guests of their devices on the kernel's command line only, which Debian's kernel does not read: install %s", text, newest)
}

// Lacking tells what a version that works has not, and others have: a sentence, or "".
func Lacking(text string) string {
	v, err := parseVersion(text)
	if err != nil {
		return ""
	}
	has, err := featuresOf(v)
	if err != nil {
		return ""
	}
	var lacks []string
	for _, f := range []struct {
		has   bool
		since version
		what  string
	}{
		{has.hugePages, hugePagesSince, "run VMs with huge pages"},
		{has.saves, savesSince, "save machines, and so start warm, snapshot, fork and suspend"},
		{has.pauseHolds, newest, "pause VMs and save their machines"},
		{has.pageReporting, reportingSince, "give back by itself what memory a guest frees"},
		{has.serialLimit, serialSince, "limit how fast a guest writes to its console"},
	} {
		if !f.has && v.before(f.since) {
			lacks = append(lacks, fmt.Sprintf("%s (%s)", f.what, f.since))
		}
	}
	if len(lacks) == 0 {
		return ""
	}
	return fmt.Sprintf("Firecracker %s works; later ones also %s", text, strings.Join(lacks, "; "))
}

// CheckHugePages tells why a version can't run machines of huge pages, or nil.
func CheckHugePages(text string) error {
	v, err := parseVersion(text)
	if err != nil {
		return err
	}
	if has, err := featuresOf(v); err != nil || has.hugePages {
		return err
	}
	return errNoHugePages()
}

func errNoHugePages() error {
	return errs.New(errs.Unavailable, "Firecracker gives huge pages to a machine with an initramfs since %s", hugePagesSince).
		Try("install %s, or leave --huge-pages out", newest)
}

// features are what some versions have and others lack.
type features struct {
	pageReporting bool // the guest's free memory goes back to the host by itself
	serialLimit   bool // the console's rate is limited
	pauseHolds    bool // the control channel survives a pause
	saves         bool // a saved machine can be given another network
	hugePages     bool // also for a machine with an initramfs
	hugeBalloon   bool // such a machine can have a balloon
}

// featuresOf tells what a version has. errs.Unavailable, with what to do, if it can't be used.
func featuresOf(v version) (features, error) {
	if v.before(oldest) {
		return features{}, errs.New(errs.Unavailable, "Firecracker %s is older than %s, the oldest that banger works with", v, oldest).
			Try("install %s, or use --backend qemu", newest)
	}
	return features{
		pageReporting: !v.before(reportingSince),
		serialLimit:   !v.before(serialSince),
		pauseHolds:    v != version{1, 16}, // the host's packets stay with Firecracker then
		saves:         !v.before(savesSince) && v != version{1, 16},
		hugePages:     !v.before(hugePagesSince),
		hugeBalloon:   !v.before(version{1, 14}),
	}, nil
}
