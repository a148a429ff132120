package vm_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"unicode"

	"banger/internal/errs"
	"banger/internal/op"
	"banger/internal/vm"
)

// unreadable says what a person could not read in an error.
func unreadable(err error) string {
	text := err.Error() + errs.HintOf(err)
	if len(text) > 600 {
		return fmt.Sprintf("it has %d bytes", len(text))
	}
	for _, r := range text {
		if !unicode.IsPrint(r) || r == unicode.ReplacementChar {
			return fmt.Sprintf("it has the character %U", r)
		}
	}
	return ""
}

func TestHostileReferences(t *testing.T) {
	w := newWorld(t)
	m, end := w.daemon()
	defer end()
	v := plain(t, m, "web")
	for name, ref := range map[string]string{
		"empty": "", "hyphen": "-", "option": "--all", "dots": "..", "path": "../x", "root": "/", "space": " ", "newline": "web\n",
		"long": strings.Repeat("x", 10_000), "long multibyte": strings.Repeat("é", 5_000), "colour": "\x1b[31mweb", "bell": "\a",
		"NUL": "\x00", "name, NUL": "web\x00", "name, NUL, more": "web\x00more", "id, NUL": v.ID + "\x00", "NUL, name": "\x00web",
		"no UTF-8": "\xff\xfe", "override": "\u202ebew", "glob": "*", "like": "%", "underscore": "_eb", "quote": "' OR 1=1 --",
		"upper case": "WEB", "id and more": v.ID + "0", "star": "we*",
	} {
		got, err := m.Find(t.Context(), ref)
		if err == nil {
			t.Errorf("%s: found %s", name, got.Name)
			continue
		}
		want := errs.NotFound
		if ref == "" {
			want = errs.Invalid
		}
		if text := unreadable(err); errs.KindOf(err) != want || text != "" {
			t.Errorf("%s: %.200q (%s): %s", name, err.Error(), errs.KindOf(err), text)
		}
	}
}

// still is an operation that nobody follows.
var still = op.NewRegistry(context.Background()).Start("test", func(context.Context, *op.Operation) error { return nil })

// plain makes a VM that does not run.
func plain(t testing.TB, m *vm.Manager, name string) vm.VM {
	t.Helper()
	v, err := m.Create(t.Context(), still, vm.Request{Name: name})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestAmbiguousPrefixesNameTheCandidates(t *testing.T) {
	w := newWorld(t)
	m, end := w.daemon()
	defer end()
	ids := map[string]string{}
	for i := range 40 {
		name := fmt.Sprintf("web-%02d", i)
		ids[name] = plain(t, m, name).ID
	}
	_, err := m.Find(t.Context(), "web-0")
	if errs.KindOf(err) != errs.Invalid || !strings.Contains(err.Error(), "web-00 ("+ids["web-00"]+"), web-01 ("+ids["web-01"]+")") {
		t.Errorf("got %v", err)
	}
	if text := unreadable(err); text != "" || !strings.HasSuffix(err.Error(), "and others") {
		t.Errorf("of ten candidates: %s: %v", text, err)
	}
	if v, err := m.Find(t.Context(), "web-1"); err == nil {
		t.Errorf("found %s", v.Name)
	}
	if v, err := m.Find(t.Context(), ids["web-07"]); err != nil || v.Name != "web-07" {
		t.Errorf("found %s, %v", v.Name, err)
	}
}

func FuzzReferences(f *testing.F) {
	w := newWorld(f)
	m, end := w.daemon()
	f.Cleanup(end)
	var vms []vm.VM
	for _, name := range []string{"web", "web-2", "db", "0", "a1"} {
		vms = append(vms, plain(f, m, name))
	}
	for _, ref := range []string{"", "-", "web", "web-", "d", vms[0].ID, vms[1].ID[:4], "web\x00", "\x1b", "0", "../x", strings.Repeat("w", 100)} {
		f.Add(ref)
	}
	f.Fuzz(func(t *testing.T, ref string) {
		var near []string
		for _, v := range vms {
			if v.ID == ref || v.Name == ref {
				near = []string{v.Name}
				break
			}
			if strings.HasPrefix(v.ID, ref) || strings.HasPrefix(v.Name, ref) {
				near = append(near, v.Name)
			}
		}
		v, err := m.Find(t.Context(), ref)
		switch kind := errs.KindOf(err); {
		case err != nil && unreadable(err) != "":
			t.Errorf("%q: %q: %s", ref, err.Error(), unreadable(err))
		case ref == "":
			if kind != errs.Invalid {
				t.Errorf("nothing found %q, %v", v.Name, err)
			}
		case len(near) == 1:
			if err != nil || v.Name != near[0] {
				t.Errorf("%q found %q, %v; not %q", ref, v.Name, err, near[0])
			}
		case len(near) == 0 && (err == nil || kind != errs.NotFound), len(near) > 1 && (err == nil || kind != errs.Invalid):
			t.Errorf("%q found %q, %v; candidates are %q", ref, v.Name, err, near)
		}
	})
}
