package disk

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"banger/internal/errs"
)

// Auto asks for the best driver that works.
const Auto = "auto"

// Set is the drivers there are, and which of them a VMM is served with best.
type Set struct {
	Drivers []Driver
	Order   []string // what Auto tries, best first; the last works everywhere, at a cost
}

// Choice is a driver and why it is the one.
type Choice struct {
	Driver     string
	Why        string // a sentence
	LastResort bool   // each of its volumes costs as much as the base
}

// Clone makes a volume with the driver of that name; see [Driver].
func (s Set) Clone(ctx context.Context, driver string, base Base, spec Spec) (Volume, error) {
	d, err := s.get(driver)
	if err != nil {
		return Volume{}, err
	}
	return d.Clone(ctx, base, spec)
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

// Choose finds the driver that makes volumes of base in dir: the one asked for by name,
// errs.Unavailable with its reason if it can't, or for Auto the best that can.
func (s Set) Choose(ctx context.Context, want string, base Base, dir string) (Choice, error) {
	if want != Auto {
		return s.named(ctx, want, base, dir)
	}
	var refused []string
	for i, name := range s.Order {
		d, err := s.get(name)
		if err != nil {
			return Choice{}, err
		}
		if err := fits(ctx, d, base, dir); err != nil {
			if ctx.Err() != nil {
				return Choice{}, ctx.Err()
			}
			refused = append(refused, fmt.Sprintf("%s: %v", name, err))
			continue
		}
		why := "the best for this VMM"
		if i > 0 {
			why = "the best that works here; " + strings.Join(refused, "; ")
		}
		return Choice{Driver: name, Why: why, LastResort: s.isLast(name)}, nil
	}
	return Choice{}, errs.New(errs.Unavailable, "no disk driver works in %s: %s", dir, strings.Join(refused, "; "))
}

func (s Set) named(ctx context.Context, want string, base Base, dir string) (Choice, error) {
	d, err := s.get(want)
	if err != nil {
		return Choice{}, err
	}
	if err := fits(ctx, d, base, dir); err != nil {
		return Choice{}, errs.New(errs.Unavailable, "the disk driver %s can't be used here", want).Because(err).
			Try("--disk-driver auto takes the best that works")
	}
	return Choice{Driver: want, Why: "it was asked for", LastResort: s.isLast(want)}, nil
}

func (s Set) isLast(name string) bool { return name == s.Order[len(s.Order)-1] }

// fits tells why d can't make a volume of base in dir.
func fits(ctx context.Context, d Driver, base Base, dir string) error {
	// What a frozen volume is made of only its own driver knows, unless it is whole.
	if base.On != nil && base.Driver != d.Name() {
		return fmt.Errorf("only the driver %s can read %s", base.Driver, base.Path)
	}
	return d.Probe(ctx, base, dir)
}
