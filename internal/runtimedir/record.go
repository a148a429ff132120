package runtimedir

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/google/renameio/v2"

	"banger/internal/errs"
)

// Record is bundle.json: every file of a bundle.
type Record struct {
	Schema    int              `json:"schema"`
	Banger    string           `json:"banger,omitempty"` // version of the banger that made it, which it suits
	Artefacts []ArtefactRecord `json:"artefacts"`
}

// ArtefactRecord tells what an artefact is and where it came from.
type ArtefactRecord struct {
	Name    string       `json:"name"`   // "kernel/debian"
	Source  string       `json:"source"` // for people
	Licence string       `json:"licence,omitempty"`
	BuiltAt time.Time    `json:"built_at"`
	Files   []FileRecord `json:"files"`
}

// FileRecord is one file of an artefact.
type FileRecord struct {
	Path   string `json:"path"`           // relative to the bundle
	Mode   string `json:"mode,omitempty"` // octal; records of earlier builds have none
	Bytes  int64  `json:"bytes"`
	SHA256 string `json:"sha256"`
}

// keptPrefix begins the names of artefacts that were in an earlier bundle and are there for
// the disks of VMs alone. They are not packed.
const keptPrefix = "kept/"

// modes are those that a bundle's files may have: nobody but its owner may write to them.
var modes = []string{"0444", "0555", "0644", "0755"}

// defaultMode is that of files whose record tells none.
const defaultMode = "0444"

// maxRecord bounds a bundle.json, in bytes.
const maxRecord = 4 << 20

// BuiltAt is when the newest artefact was made: by that, bundles are older or newer.
func (r Record) BuiltAt() time.Time {
	var newest time.Time
	for _, a := range r.Artefacts {
		if a.BuiltAt.After(newest) && !strings.HasPrefix(a.Name, keptPrefix) {
			newest = a.BuiltAt
		}
	}
	return newest
}

// Files returns all files by their paths.
func (r Record) Files() map[string]FileRecord {
	out := map[string]FileRecord{}
	for _, a := range r.Artefacts {
		for _, f := range a.Files {
			out[f.Path] = f
		}
	}
	return out
}

// Has tells whether the bundle has an artefact of that name.
func (r Record) Has(name string) bool {
	return slices.ContainsFunc(r.Artefacts, func(a ArtefactRecord) bool { return a.Name == name })
}

// parseRecord reads a record and refuses one whose files would not all lie, once each,
// inside of the bundle.
func parseRecord(b []byte) (Record, error) {
	var r Record
	if err := json.Unmarshal(b, &r); err != nil {
		return r, err
	}
	if r.Schema != schema {
		return r, fmt.Errorf("its schema is %d, and this banger knows %d", r.Schema, schema)
	}
	seen := map[string]bool{recordFile: true}
	for _, a := range r.Artefacts {
		if strings.HasPrefix(a.Name, keptPrefix) && len(a.Files) != 1 {
			return r, fmt.Errorf("its artefact %q has %d files", a.Name, len(a.Files))
		}
		for _, f := range a.Files {
			if err := f.check(); err != nil {
				return r, err
			}
			for dir := f.Path; dir != "."; dir = path.Dir(dir) {
				if seen[dir] {
					return r, fmt.Errorf("its file %q is there twice, or a directory too", f.Path)
				}
			}
			seen[f.Path] = true
		}
	}
	return r, nil
}

func (f FileRecord) check() error {
	switch {
	case !filepath.IsLocal(f.Path) || path.Clean(f.Path) != f.Path || f.Path == ".":
		return fmt.Errorf("its file %q is no clean path", f.Path)
	case strings.ContainsFunc(f.Path, func(c rune) bool { return c < ' ' || c == 0x7f }):
		return fmt.Errorf("its file %q has control characters", f.Path)
	case !digestPattern.MatchString(f.SHA256) || f.Bytes < 0:
		return fmt.Errorf("its file %q has %d bytes and the SHA-256 %q", f.Path, f.Bytes, f.SHA256)
	case f.Mode != "" && !slices.Contains(modes, f.Mode):
		return fmt.Errorf("its file %q has the mode %q", f.Path, f.Mode)
	}
	return nil
}

// ReadRecord reads the record of the bundle in dir; one without is empty.
func ReadRecord(dir string) (Record, error) {
	r := Record{Schema: schema}
	b, err := os.ReadFile(filepath.Join(dir, recordFile))
	if errors.Is(err, fs.ErrNotExist) {
		return r, nil
	}
	if err == nil {
		r, err = parseRecord(b)
	}
	if err != nil {
		return r, errs.New(errs.Internal, "the record of the runtime bundle in %s can't be used", dir).Because(err).
			Try("remove %s and build again", filepath.Join(dir, recordFile))
	}
	return r, nil
}

func (r Record) encode() ([]byte, error) {
	b, err := json.MarshalIndent(r, "", "  ")
	return append(b, '\n'), err
}

func (r *Record) write(dir string) error {
	b, err := r.encode()
	if err != nil {
		return err
	}
	return renameio.WriteFile(filepath.Join(dir, recordFile), b, 0o644)
}
