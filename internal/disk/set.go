package disk

import (
	"context"
	"errors"
	"strings"

	"banger/internal/errs"
)

// Set is the drivers there are, and which of them a VMM is served with best.
type Set struct {
	Drivers []Driver
	Order   []string // what Auto tries, best first; the last works everywhere, at a cost
}

// get returns the driver of that name. errs.Invalid if there is none.
func (s Set) get(name string) (Driver, error) {
	var names []string
	for _, d := range s.Drivers {
		if d.Name() == name {
			return d, nil
		}
		names = append(names, d.Name())
	}
	return nil, errs.New(errs.Invalid, "there is no disk driver %q", name).Try("use %s or %s", Auto, strings.Join(names, ", "))
}

// Clone makes a volume with the driver of that name; see [Driver].
func (s Set) Clone(ctx context.Context, driver string, base Base, spec Spec) (Volume, error) {
	d, err := s.get(driver)
	if err != nil {
		return Volume{}, err
	}
	return d.Clone(ctx, base, spec)
}

// Copy copies a volume's changes; see [Driver].
func (s Set) Copy(ctx context.Context, v Volume, home Home) (Volume, error) {
	d, err := s.get(v.Driver)
	if err != nil {
		return Volume{}, err
	}
	return d.Copy(ctx, v, home)
}

// Attach attaches a volume; see [Driver].
func (s Set) Attach(ctx context.Context, home Home, v Volume) (Attached, error) {
	d, err := s.get(v.Driver)
	if err != nil {
		return Attached{}, err
	}
	return d.Attach(ctx, home, v)
}

// Usage tells what a volume takes; see [Driver].
func (s Set) Usage(v Volume) (Usage, error) {
	d, err := s.get(v.Driver)
	if err != nil {
		return Usage{}, err
	}
	return d.Usage(v)
}

// Extents yields what a volume holds itself; see [Driver].
func (s Set) Extents(v Volume, yield func(offset, bytes int64)) error {
	d, err := s.get(v.Driver)
	if err != nil {
		return err
	}
	return d.Extents(v, yield)
}

// Detach takes away what any driver has attached for the home; see [Driver].
func (s Set) Detach(ctx context.Context, home Home) error {
	var failed []error
	for _, d := range s.Drivers {
		failed = append(failed, d.Detach(ctx, home))
	}
	return errors.Join(failed...)
}

// Check tells why what is attached for the home has stopped to work; see [Driver].
func (s Set) Check(home Home) error {
	var failed []error
	for _, d := range s.Drivers {
		failed = append(failed, d.Check(home))
	}
	return errors.Join(failed...)
}

// Remove takes away what any driver has made for the home; see [Driver]. That is more than
// the VM's own driver may have, for a creation that was cut short tells of none.
func (s Set) Remove(ctx context.Context, home Home) error {
	var failed []error
	for _, d := range s.Drivers {
		failed = append(failed, d.Remove(ctx, home))
	}
	return errors.Join(failed...)
}
