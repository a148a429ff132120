package disk

import (
	"context"
	"fmt"
	"strings"

	"banger/internal/errs"
)

// Auto asks for the best driver that works.
const Auto = "auto"

// Choice is a driver and why it is the one.
type Choice struct {
	Driver     string
	Why        string // a sentence
	LastResort bool   // each of its volumes costs as much as the base
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
