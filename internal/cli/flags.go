package cli

import (
	"errors"
	"math"
	"strconv"
	"strings"

	"github.com/docker/go-units"
	"github.com/spf13/pflag"
)

// size is a flag that takes a number of bytes, as 512M, 1.5G, 1GiB or 1073741824.
type size struct{ to **int64 }

var _ pflag.Value = size{}

func (s size) Set(text string) error {
	n, err := parseSize(text)
	if err == nil {
		*s.to = &n
	}
	return err
}

func (s size) String() string { return "" }
func (s size) Type() string   { return "size" }

// parseSize reads a size in bytes; the units are powers of 1024. It is at least 1 and
// fits an int64.
func parseSize(text string) (int64, error) {
	number := strings.TrimRight(text, "bikmgtpBIKMGTP")
	f, err := strconv.ParseFloat(number, 64)
	if strings.Trim(number, "0123456789.") != "" || err != nil && !errors.Is(err, strconv.ErrRange) {
		if strings.HasPrefix(text, "-") {
			return 0, errors.New("a size is more than 0")
		}
		return 0, errors.New("a size is a number and a unit, as in 512M or 1.5G")
	}
	unit := int64(1)
	if suffix := text[len(number):]; suffix != "" {
		if unit, err = units.RAMInBytes("1" + suffix); err != nil {
			return 0, errors.New("the units of a size are K, M, G and T")
		}
	}
	whole, notWhole := strconv.ParseInt(number, 10, 64)
	switch n := f * float64(unit); {
	case unit == 1 && notWhole == nil && whole > 0:
		return whole, nil // a float64 would round it
	case n >= math.MaxInt64:
		return 0, errors.New("that is more bytes than can be counted")
	case n < 1:
		return 0, errors.New("a size is more than 0")
	default:
		return int64(n), nil
	}
}

// bootFlag is a flag that, given, asks for one way to start.
type bootFlag struct {
	to   *string
	boot string
}

func (b bootFlag) Set(text string) error {
	given, err := strconv.ParseBool(text)
	switch {
	case err != nil || !given:
		return err
	case *b.to != "" && *b.to != b.boot:
		return errors.New("--fresh and --warm exclude each other")
	}
	*b.to = b.boot
	return nil
}

func (b bootFlag) String() string   { return "" }
func (b bootFlag) Type() string     { return "bool" }
func (b bootFlag) IsBoolFlag() bool { return true }

// envFlag is the repeatable flag -e: K=V, or K to take it from banger's environment.
type envFlag struct {
	list   *[]string
	lookup func(string) (string, bool)
}

func (e envFlag) Set(text string) error {
	kv, ok, err := parseEnv(text, e.lookup)
	if ok {
		*e.list = append(*e.list, kv)
	}
	return err
}

func (e envFlag) String() string { return "" }
func (e envFlag) Type() string   { return "K=V" }

// parseEnv makes K=V of what -e got. A bare K that the environment lacks gives nothing.
func parseEnv(text string, lookup func(string) (string, bool)) (kv string, ok bool, err error) {
	key, _, full := strings.Cut(text, "=")
	switch {
	case key == "":
		return "", false, errors.New("a variable has a name, as in K=V")
	case strings.ContainsRune(text, 0):
		return "", false, errors.New("a variable holds no NUL byte")
	case full:
		return text, true, nil
	}
	value, ok := lookup(key)
	if !ok {
		return "", false, nil
	}
	return key + "=" + value, true, nil
}
