package image

import (
	"context"
	"errors"
	"path/filepath"

	"banger/internal/image/shelf"
)

// Commit makes an image of the ext4 filesystem at path, a finished file below d.Dir, and
// lets the draft's name mean it: in one step, from which on both survive a power cut. Of i
// it takes what the file does not tell; the names, the hash, the sizes and the date it fills in
// itself.
func (d *Draft) Commit(ctx context.Context, path string, i Image, progress Progress) (_ Image, err error) {
	id := newID()
	stage, err := images.Begin(d.store.generations(), id, false)
	if err != nil {
		return Image{}, err
	}
	defer func() { err = errors.Join(err, stage.Discard()) }()
	i.Name = d.name
	if i, err = seal(ctx, stage.Dir, path, i, progress); err != nil {
		return Image{}, err
	}
	d.store.mu.Lock()
	defer d.store.mu.Unlock()
	if _, err := stage.Commit(i); err != nil {
		return Image{}, err
	}
	if err := d.store.rename(func(n names) { n[d.name] = id }); err != nil {
		return Image{}, errors.Join(err, images.Remove(d.store.generations(), id))
	}
	return d.store.named(d.name)
}

// Leftovers returns what work that was cut short has left in the store. The caller makes
// sure that none is going on.
func (s *Store) Leftovers() ([]string, error) {
	drafts, err := shelf.Leftovers(s.dir)
	if err != nil {
		return nil, err
	}
	stages, err := shelf.Leftovers(filepath.Join(s.dir, generationsDir))
	return append(drafts, stages...), err
}
