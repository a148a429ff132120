package firecracker

import (
	"strings"
	"testing"

	"banger/internal/errs"
)

// Each version is asked for what it has and no more: Firecracker refuses fields it does not know.
func TestFeaturesByVersion(t *testing.T) {
	for v, want := range map[string]features{
		"1.7.0": {pauseHolds: true}, "1.10.1": {pauseHolds: true}, "1.11.0": {pauseHolds: true, hugePages: true},
		"1.12.0": {pauseHolds: true, hugePages: true, saves: true}, "1.13.2": {pauseHolds: true, hugePages: true, saves: true},
		"1.14.0": {pageReporting: true, pauseHolds: true, saves: true, hugePages: true, hugeBalloon: true},
		"1.15.1": {pageReporting: true, pauseHolds: true, saves: true, hugePages: true, hugeBalloon: true},
		"1.16.1": {pageReporting: true, serialLimit: true, hugePages: true, hugeBalloon: true},
		"1.17.0": {pageReporting: true, serialLimit: true, pauseHolds: true, saves: true, hugePages: true, hugeBalloon: true},
		"1.18.0": {pageReporting: true, serialLimit: true, pauseHolds: true, saves: true, hugePages: true, hugeBalloon: true},
	} {
		parsed, err := parseVersion(v)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := featuresOf(parsed); err != nil || got != want {
			t.Errorf("%s: %+v, %v", v, got, err)
		}
		spec := goodSpec(t)
		spec.HugePages = true
		told := tellAll(t, configuration(spec, want, tuning{}))
		if got := strings.Contains(told, "/serial"); got != want.serialLimit {
			t.Errorf("%s: a limit of the console is asked for: %v", v, got)
		}
		if got := strings.Contains(told, "/balloon"); got != want.hugeBalloon {
			t.Errorf("%s: a balloon is asked for beside huge pages: %v", v, got)
		}
	}
}

// What a version has not is said in a sentence.
func TestLacking(t *testing.T) {
	for v, words := range map[string][]string{
		"1.7.0": {"huge pages (1.11)", "start warm", "(1.12)", "memory a guest frees (1.14)", "console", "(1.16)"}, "1.14.1": {"console", "(1.16)"},
		"1.16.1": {"pause VMs", "(1.17)"}, "1.17.0": nil, "1.18.0": nil,
	} {
		got := Lacking(v)
		for _, w := range words {
			if !strings.Contains(got, w) {
				t.Errorf("%s: %q has no %q", v, got, w)
			}
		}
		if len(words) == 0 && got != "" || strings.Count(got, "(") != strings.Count(strings.Join(words, ""), "(") {
			t.Errorf("%s: %q", v, got)
		}
	}
}

func TestVersions(t *testing.T) {
	for v, note := range map[string]string{"1.14.1": "", "1.17.0": "", "1.7.0": "command line only", "1.18.0": "newer than 1.17", "2.0.0": "newer"} {
		h := fake(t, script{Version: v})
		for range 2 { // the second is remembered
			if got, err := h.Version(t.Context()); err != nil || got != v {
				t.Errorf("%s: %q, %v", v, got, err)
			}
		}
		if got := Untested(v); !strings.Contains(got, note) || note == "" && got != "" {
			t.Errorf("%s: %q", v, got)
		}
	}
	for _, v := range []string{"1.6.0", "0.25.0", "", "1", "x.y.z", "1.14.\x1b[31m", "-1.2.3"} {
		got, err := fake(t, script{Version: "v" + v}).Version(t.Context())
		if v == "1.14.\x1b[31m" { // a patch is not looked at
			continue
		}
		if errs.KindOf(err) != errs.Unavailable {
			t.Errorf("%q: %q, %v", v, got, err)
		}
	}
	if _, err := named("/nonexistent/firecracker").Version(t.Context()); errs.KindOf(err) != errs.Unavailable {
		t.Errorf("no Firecracker: %v", err)
	}
}

func FuzzParseVersion(f *testing.F) {
	for _, seed := range []string{"1.14.1", "v1.7.0", "1.17.0-dev", "", "1.2", "99999.0.0", "1.-1.0"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, s string) {
		v, err := parseVersion(s)
		if err == nil && (v.major < 0 || v.minor < 0 || !strings.Contains(s, ".")) {
			t.Errorf("%q is taken for %v", s, v)
		}
	})
}
