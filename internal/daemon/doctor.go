package daemon

import (
	"context"
	"fmt"
	"strings"

	"banger/api"
	"banger/internal/errs"
	"banger/internal/host"
	"banger/internal/hypervisor"
	"banger/internal/hypervisor/firecracker"
	"banger/internal/hypervisor/qemu"
	"banger/internal/vm"
)

const (
	ok      = "ok"
	warning = "warning"
	failed  = "failed"
)

// lowSpace is the free space, in bytes, below which the doctor warns.
const lowSpace = 2 << 30

// doctor examines what VMs need of the host, each thing by trying it.
func (d *Daemon) doctor(ctx context.Context) []api.Check {
	checks := []api.Check{d.checkQEMU(ctx), d.checkFirecracker(ctx), d.checkAccel(ctx), d.checkConfinement(ctx), d.checkBundle(ctx), d.checkDisks(ctx), d.checkNames(), d.checkSpace()}
	checks = append(checks, d.checkNetwork(ctx)...)
	return append(checks, d.checkHost(ctx)...)
}

func finding(name, status, detail string, err error) api.Check {
	c := api.Check{Name: name, Status: status, Detail: detail}
	if err != nil {
		c.Detail, c.Hint = err.Error(), errs.HintOf(err)
	}
	return c
}

// checkQEMU tells of the VMM that VMs can do without only where Firecracker runs them all.
func (d *Daemon) checkQEMU(ctx context.Context) api.Check {
	out, err := host.Output(ctx, host.Command{Path: qemu.DefaultBinary, Args: []string{"--version"}})
	if err != nil {
		return finding("qemu", failed, "", err)
	}
	version, _, _ := strings.Cut(string(out), "\n")
	return finding("qemu", ok, version, nil)
}

// checkFirecracker tells of the VMM that is taken where it can be. There need be none.
func (d *Daemon) checkFirecracker(ctx context.Context) api.Check {
	const name = "firecracker"
	version, err := d.vmm.firecrackers.Version(ctx)
	if err != nil {
		c := finding(name, warning, "", err)
		c.Detail += ". QEMU runs all VMs"
		return c
	}
	if err := d.vmm.firecrackers.CheckOptions(); err != nil {
		return finding(name, failed, "", err)
	}
	if note := firecracker.Untested(version); note != "" {
		return finding(name, warning, note, nil)
	}
	if lacking := firecracker.Lacking(version); lacking != "" {
		return finding(name, ok, lacking, nil)
	}
	return finding(name, ok, "Firecracker "+version, nil)
}

// checkAccel tells how VMs would be run. Whether KVM works is seen by booting the default
// kernel with it; if that has failed before, it is tried again.
func (d *Daemon) checkAccel(ctx context.Context) api.Check {
	kvm := host.ProbeKVM("/")
	why := kvm.Reason
	if k, err := d.library.Kernel(d.opts.Config.Kernel); kvm.Usable && err != nil {
		why = "it can't be tried without a kernel: " + err.Error()
	} else if kvm.Usable {
		if err := d.vmm.doubt(); err != nil {
			return finding("acceleration", failed, "", err)
		}
		backend, accel, err := d.vmm.Choose(ctx, usual, k.Vmlinux)
		if err != nil {
			return finding("acceleration", failed, "", err)
		}
		if accel == hypervisor.KVM {
			return finding("acceleration", ok, "KVM works here; VMs are run by "+string(backend), nil)
		}
		why = d.vmm.noKVM(ctx, k.Vmlinux)
	}
	return finding("acceleration", warning,
		"no KVM: "+why+". VMs are translated in software (TCG): slower, and no security boundary between them and this host", nil)
}

// usual is a VM that asks for nothing in particular.
var usual = vm.Spec{Backend: vm.AutoBackend, Accel: "auto", Net: vm.NetNone}

// usualBackend is what runs a VM that asks for nothing in particular; QEMU where that can't
// be told.
func (d *Daemon) usualBackend(ctx context.Context) hypervisor.Backend {
	if k, err := d.library.Kernel(d.opts.Config.Kernel); err == nil {
		if backend, _, err := d.vmm.Choose(ctx, usual, k.Vmlinux); err == nil {
			return backend
		}
	}
	return hypervisor.QEMU
}

func (d *Daemon) checkBundle(ctx context.Context) api.Check {
	detail, err := d.library.detail(ctx)
	if err != nil {
		return finding("runtime bundle", failed, "", err)
	}
	return finding("runtime bundle", ok, detail, nil)
}

func (d *Daemon) checkSpace() api.Check {
	state := d.opts.Config.StateDir
	free, err := host.FreeBytes(state)
	if err != nil {
		return finding("disk space", failed, "", err)
	}
	status := ok
	if free < lowSpace {
		status = warning
	}
	return finding("disk space", status, fmt.Sprintf("%d MiB free for %s", free>>20, state), nil)
}

func (d *Daemon) checkNames() api.Check {
	status := d.names.Status()
	if status.Problem != "" {
		return api.Check{Name: "names", Status: failed, Detail: status.Problem, Hint: status.Hint}
	}
	for _, l := range status.Listeners {
		if l.Problem != "" {
			return api.Check{Name: "names", Status: warning, Detail: l.Problem, Hint: "set dns_listen in the config file to another address"}
		}
	}
	return finding("names", ok, "published by "+status.Publisher+": "+status.Why, nil)
}
