package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"banger/internal/errs"
)

// library is a store beside a bundle that has the images tiny and debian.
func library(t *testing.T) *Store {
	t.Helper()
	bundle := filepath.Join(t.TempDir(), "bundle")
	for _, name := range []string{"debian", "tiny"} {
		stage, err := images.Begin(bundle, name, false)
		if err != nil {
			t.Fatal(err)
		}
		i, err := seal(t.Context(), stage.Dir, file(t, stage.Dir, "bundled "+name), Image{Name: name}, quiet)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := stage.Commit(i); err != nil {
			t.Fatal(err)
		}
	}
	return NewStore(filepath.Join(t.TempDir(), "images"), func() (string, error) { return bundle, nil })
}

// file makes a file that stands for a filesystem.
func file(t *testing.T, dir, content string) string {
	t.Helper()
	path := filepath.Join(dir, "fs")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func commit(t *testing.T, s *Store, name, content string) Image {
	t.Helper()
	d, err := s.Begin(name)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Discard()
	i, err := d.Commit(t.Context(), file(t, d.Dir, content), Image{Config: &Config{Cmd: []string{content}}}, quiet)
	if err != nil {
		t.Fatal(err)
	}
	return i
}

func titles(t *testing.T, s *Store) string {
	t.Helper()
	all, err := s.List()
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, i := range all {
		title := strings.Join(i.Names, "+")
		if title == "" {
			title = "(" + i.Name + ")"
		}
		out = append(out, title)
	}
	return strings.Join(out, " ")
}

func content(t *testing.T, i Image) string {
	t.Helper()
	b, err := os.ReadFile(i.Path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func freely(_ Image, remove func() error) error { return remove() }

func TestStoreBesideABundle(t *testing.T) {
	s := library(t)
	if got := titles(t, s); got != "debian tiny" {
		t.Errorf("at first there are %s", got)
	}
	made := commit(t, s, "debian:latest", "own")
	if made.Name != "debian" || !slices.Equal(made.Names, []string{"debian"}) || made.Config.Cmd[0] != "own" || made.VirtualBytes != 3 || made.BuiltAt.IsZero() {
		t.Errorf("made %+v", made)
	}
	got, err := s.Get("debian")
	if err != nil || content(t, got) != "own" || got.Digest != made.Digest || got.ReadOnly {
		t.Errorf("debian is %+v, %v", got, err)
	}
	if got := titles(t, s); got != "debian (debian) tiny" {
		t.Errorf("then there are %s", got)
	}
	all, err := s.List()
	if err != nil {
		t.Fatal(err)
	}
	bundled := all[1]
	if got, err := s.Get(bundled.Title()); err != nil || content(t, got) != "bundled debian" || !got.ReadOnly {
		t.Errorf("the bundle's by its digest, %s: %+v, %v", bundled.Title(), got, err)
	}
	if err := s.Remove("tiny", freely); errs.KindOf(err) != errs.Conflict || !strings.Contains(err.Error(), "bundle") {
		t.Errorf("remove an image of the bundle: %v", err)
	}
	if err := s.Remove("debian", freely); err != nil {
		t.Fatal(err)
	}
	if got, err := s.Get("debian"); err != nil || content(t, got) != "bundled debian" {
		t.Errorf("debian is the bundle's again: %+v, %v", got, err)
	}
	if got := titles(t, s); got != "debian tiny" {
		t.Errorf("in the end there are %s", got)
	}
}

func TestEqualImagesHaveDigestsOfTheirOwn(t *testing.T) {
	s := library(t)
	first, second := commit(t, s, "app", "same"), commit(t, s, "app", "same")
	for _, i := range []Image{first, second} {
		if got, err := s.Get(i.Digest); err != nil || got.Path != i.Path {
			t.Errorf("%s is %+v, %v", i.Digest, got, err)
		}
	}
}

func TestStoreGenerations(t *testing.T) {
	s := library(t)
	first := commit(t, s, "app:1", "one")
	second := commit(t, s, "app:1", "two")
	if got, err := s.Get("app:1"); err != nil || content(t, got) != "two" {
		t.Errorf("the name means %+v, %v", got, err)
	}
	if content(t, first) != "one" {
		t.Error("the first generation has changed")
	}
	for _, ref := range []string{first.Digest, first.Digest[:19], "app:1@" + first.Digest, "app@" + first.Digest} {
		if got, err := s.Get(ref); err != nil || got.Path != first.Path || len(got.Names) != 0 {
			t.Errorf("%s is %+v, %v", ref, got, err)
		}
	}
	for _, ref := range []string{"app", "app:2", "other@" + first.Digest, "app@sha256:" + strings.Repeat("0", 64)} {
		if got, err := s.Get(ref); errs.KindOf(err) != errs.NotFound {
			t.Errorf("%s is %+v, %v", ref, got, err)
		}
	}
	if err := s.Tag("sha256:"+first.Digest[7:], "app:old"); err != nil {
		t.Fatal(err)
	}
	if err := s.Tag("app:1", "registry.example/app:1"); err != nil {
		t.Fatal(err)
	}
	if got := titles(t, s); got != "app:1+registry.example/app:1 app:old debian tiny" {
		t.Errorf("there are %s", got)
	}

	refused := errors.New("in use")
	if err := s.Remove("app:old", func(Image, func() error) error { return refused }); !errors.Is(err, refused) {
		t.Errorf("in use: %v", err)
	}
	if _, err := s.Get("app:old"); err != nil {
		t.Errorf("after a refusal: %v", err)
	}
	asked := false
	if err := s.Remove("app:1", func(Image, func() error) error { asked = true; return nil }); err != nil || asked {
		t.Errorf("one name of two: %v, asked %v", err, asked)
	}
	if got := titles(t, s); got != "app:old debian registry.example/app:1 tiny" {
		t.Errorf("without a name there are %s", got)
	}
	if err := s.Remove(second.Digest, freely); err != nil {
		t.Fatal(err)
	}
	if got := titles(t, s); got != "app:old debian tiny" {
		t.Errorf("at last there are %s", got)
	}
	if _, err := os.Stat(second.Dir); err == nil {
		t.Error("its directory is left")
	}
}

func TestStoreTagsNothingInADirectoryOfItsName(t *testing.T) {
	s := library(t)
	if err := s.Tag("tiny", "small"); errs.KindOf(err) != errs.Invalid || errs.HintOf(err) == "" {
		t.Errorf("tag of an image of the bundle: %v", err)
	}
	if err := s.Tag("nonesuch", "x"); errs.KindOf(err) != errs.NotFound {
		t.Errorf("tag of nothing: %v", err)
	}
	if err := s.Tag("tiny", "a:b:c"); errs.KindOf(err) != errs.Invalid {
		t.Errorf("a name that is none: %v", err)
	}
}

// TestStoreShowsNothingHalfMade looks at the store while a draft is at work and after it failed.
func TestStoreShowsNothingHalfMade(t *testing.T) {
	s := library(t)
	d, err := s.Begin("app")
	if err != nil {
		t.Fatal(err)
	}
	path := file(t, d.Dir, "half")
	if got := titles(t, s); got != "debian tiny" {
		t.Errorf("with a draft there are %s", got)
	}
	if left, err := s.Leftovers(); err != nil || len(left) != 1 {
		t.Errorf("leftovers %v, %v", left, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := d.Commit(ctx, path, Image{}, quiet); !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled commit: %v", err)
	}
	if err := d.Discard(); err != nil {
		t.Fatal(err)
	}
	if got := titles(t, s); got != "debian tiny" {
		t.Errorf("after it there are %s", got)
	}
	if left, err := s.Leftovers(); err != nil || len(left) != 0 {
		t.Errorf("leftovers %v, %v", left, err)
	}
}

func TestStoreWithDamage(t *testing.T) {
	s := library(t)
	i := commit(t, s, "app", "x")
	if err := os.Chmod(filepath.Join(i.Dir, "manifest.json"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(i.Dir, "manifest.json"), []byte("{"), 0o644); err != nil {
		t.Fatal(err)
	}
	gone := commit(t, s, "gone:1", "y")
	commit(t, s, "gone:1", "z") // so that no name means the one before
	if err := os.Remove(filepath.Join(gone.Dir, "manifest.json")); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Get("app"); errs.KindOf(err) != errs.Internal || errs.HintOf(err) != "remove it: banger image rm app; then make it again" {
		t.Errorf("a damaged record: %v (%s)", err, errs.HintOf(err))
	}
	// The others are listed, and those too.
	all, err := s.List()
	if err != nil {
		t.Fatal(err)
	}
	damaged := map[string]Image{}
	for _, i := range all {
		if i.Damage != nil {
			damaged[i.Title()] = i
		}
	}
	if len(damaged) != 2 || damaged["app"].Damage == nil || len(all) != 5 {
		t.Errorf("damaged are %v of %d", damaged, len(all))
	}
	delete(damaged, "app")
	for title, i := range damaged {
		if !strings.HasPrefix(title, "sha256:") || !strings.Contains(errs.HintOf(i.Damage), "banger image rm "+title) {
			t.Errorf("that without a name is %s: %s", title, errs.HintOf(i.Damage))
		}
		if err := s.Remove(title, freely); err != nil {
			t.Errorf("remove it: %v", err)
		}
	}
	if err := s.Remove("app", freely); err != nil {
		t.Errorf("remove the one with a name: %v", err)
	}
	if got := titles(t, s); strings.Contains(got, "app") || !strings.Contains(got, "gone:1") {
		t.Errorf("then there are %s", got)
	}
	commit(t, s, "app", "x")
	if err := os.WriteFile(filepath.Join(s.dir, namesFile), []byte("[]"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Get("tiny"); errs.KindOf(err) != errs.Internal || !strings.Contains(errs.HintOf(err), namesFile) {
		t.Errorf("damaged names: %v", err)
	}
}

func TestStoreWithoutABundle(t *testing.T) {
	none := errs.New(errs.Unavailable, "there is no bundle")
	s := NewStore(t.TempDir(), func() (string, error) { return "", none })
	if _, err := s.Get("debian"); !errors.Is(err, error(none)) {
		t.Errorf("an image that a bundle may have: %v", err)
	}
	commit(t, s, "app:1", "x")
	if got := titles(t, s); got != "app:1" {
		t.Errorf("there are %s", got)
	}
}

// TestStoreUnderLoad commits, tags, lists and removes side by side. Run it with -race.
func TestStoreUnderLoad(t *testing.T) {
	s := library(t)
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for n := range 5 {
				i := commit(t, s, fmt.Sprintf("w%d", w), fmt.Sprint(w, n))
				if err := s.Tag(i.Digest, fmt.Sprintf("w%d:%d", w, n)); err != nil {
					t.Error(err)
				}
				if _, err := s.List(); err != nil {
					t.Error(err)
				}
				if n > 0 {
					if err := s.Remove(fmt.Sprintf("w%d:%d", w, n-1), freely); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
	if got := titles(t, s); got != "debian tiny w0+w0:4 w1+w1:4 w2+w2:4 w3+w3:4" {
		t.Errorf("there are %s", got)
	}
}

func TestShare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := library(t)
		runs, told := 0, make([]string, 2)
		begun, finish := make(chan struct{}), make(chan struct{})
		work := func(ctx context.Context, progress Progress) (Image, error) {
			runs++
			close(begun)
			select {
			case <-finish:
				progress("last", 0, 0)
				return Image{Name: "made"}, nil
			case <-ctx.Done():
				return Image{}, ctx.Err()
			}
		}
		first, giveUp := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := s.Share(first, "k", func(stage string, _, _ int64) { told[0] = stage }, work); !errors.Is(err, context.Canceled) {
				t.Errorf("who gave up got %v", err)
			}
		})
		<-begun
		wg.Go(func() {
			i, err := s.Share(t.Context(), "k", func(stage string, _, _ int64) { told[1] = stage }, work)
			if err != nil || i.Name != "made" {
				t.Errorf("who stayed got %+v, %v", i, err)
			}
		})
		synctest.Wait()
		giveUp() // the work goes on for the other
		synctest.Wait()
		close(finish)
		wg.Wait()
		if runs != 1 || told[0] != "" || told[1] != "last" {
			t.Errorf("%d runs, told %q", runs, told)
		}

		// Alone, giving up cancels, and the next one starts anew.
		begun, finish = make(chan struct{}), make(chan struct{})
		alone, giveUp := context.WithCancel(t.Context())
		go func() { <-begun; giveUp() }()
		if _, err := s.Share(alone, "k", quiet, work); !errors.Is(err, context.Canceled) {
			t.Errorf("alone: %v", err)
		}
		begun = make(chan struct{})
		close(finish)
		if i, err := s.Share(t.Context(), "k", quiet, work); err != nil || i.Name != "made" || runs != 3 {
			t.Errorf("anew: %+v, %v after %d runs", i, err, runs)
		}
	})
}

// FuzzRecord reads an image's record of any bytes: its file lies in its directory, or it is damaged.
func FuzzRecord(f *testing.F) {
	f.Add([]byte(`{"schema_version":1,"sha256":"` + strings.Repeat("0", 64) + `","virtual_bytes":1}`))
	f.Add([]byte(`{"sha256":"/../../x"}`))
	f.Fuzz(func(t *testing.T, record []byte) {
		dir := filepath.Join(t.TempDir(), "x")
		if err := errors.Join(os.Mkdir(dir, 0o700), os.WriteFile(filepath.Join(dir, "manifest.json"), record, 0o600)); err != nil {
			t.Fatal(err)
		}
		i, err := load(dir)
		if filepath.Dir(i.Path) != dir || i.Title() == "" || !strings.HasPrefix(i.Digest, digestIs) || i.Damage != nil && err == nil {
			t.Errorf("%+v, %v", i, err)
		}
	})
}
