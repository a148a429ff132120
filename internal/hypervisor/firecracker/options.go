package firecracker

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"

	"banger/internal/errs"
)

// Options are what the owner of a host settles for all machines.
type Options struct {
	DiskIO      string // how disks are read and written: DiskSync, also if empty, or DiskAsync
	CPUTemplate string // path of a file with what CPUs show to guests, as Firecracker's documentation has it; or empty
}

// The ways of Options.DiskIO.
const (
	DiskSync  = "sync"  // one request after another
	DiskAsync = "async" // by io_uring, many at a time
)

// tuning is what the options come to.
type tuning struct {
	engine string // of disks; empty: Firecracker's default, which is sync
	cpu    cpuConfig
}

// maxTemplate bounds a CPU template, in bytes: those of Firecracker's own have some 30 KiB.
const maxTemplate = 1 << 20

// CheckOptions tells what is wrong with the options, or nil.
func (h *Hypervisor) CheckOptions() error {
	_, err := h.options.tuning()
	return err
}

// tuning reads what the options name. errs.Invalid, errs.Unavailable.
func (o Options) tuning() (t tuning, err error) {
	if o.DiskIO == DiskAsync {
		t.engine = "Async"
	}
	if o.CPUTemplate == "" {
		return t, nil
	}
	f, err := os.Open(o.CPUTemplate)
	if err != nil {
		return t, errs.New(errs.Unavailable, "the CPU template can't be read").Because(err).Try("see firecracker_cpu_template in the config file")
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxTemplate+1))
	if err == nil && len(text) > maxTemplate {
		err = errors.New("it is too long")
	}
	if err == nil {
		dec := json.NewDecoder(bytes.NewReader(text))
		dec.DisallowUnknownFields()
		err = dec.Decode(&t.cpu)
	}
	if err != nil {
		return t, errs.New(errs.Invalid, "%s is no CPU template of Firecracker's", o.CPUTemplate).Because(err).
			Try("it is JSON with cpuid_modifiers and msr_modifiers; see firecracker_cpu_template in the config file")
	}
	return t, nil
}
