package daemon

import (
	"context"
	"fmt"
	"strings"

	"banger/api"
	"banger/internal/errs"
	"banger/internal/host"
	"banger/internal/hypervisor"
	"banger/internal/hypervisor/qemu"
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
	checks := []api.Check{d.checkVMM(ctx), d.checkAccel(ctx), d.checkConfinement(ctx), d.checkBundle(ctx), d.checkDisks(ctx), d.checkNames(), d.checkSpace()}
	return append(checks, d.checkNetwork(ctx)...)
}

func finding(name, status, detail string, err error) api.Check {
	c := api.Check{Name: name, Status: status, Detail: detail}
	if err != nil {
		c.Detail, c.Hint = err.Error(), errs.HintOf(err)
	}
	return c
}

func (d *Daemon) checkVMM(ctx context.Context) api.Check {
	out, err := host.Output(ctx, host.Command{Path: qemu.DefaultBinary, Args: []string{"--version"}})
	if err != nil {
		return finding("qemu", failed, "", err)
	}
	version, _, _ := strings.Cut(string(out), "\n")
	return finding("qemu", ok, version, nil)
}

// checkAccel tells how VMs would be run. Whether KVM works is seen by booting the default
// kernel with it.
func (d *Daemon) checkAccel(ctx context.Context) api.Check {
	kvm := host.ProbeKVM("/")
	why := kvm.Reason
	if k, err := d.library.Kernel(d.opts.Config.Kernel); kvm.Usable && err != nil {
		why = "it can't be tried without a kernel: " + err.Error()
	} else if kvm.Usable {
		verdict, err := d.vmm.Choose(ctx, k.Vmlinux, d.vmm.verdicts())
		if err != nil {
			return finding("acceleration", failed, "", err)
		}
		if verdict.Accel == hypervisor.KVM {
			return finding("acceleration", ok, "KVM works here", nil)
		}
		why = verdict.Reason
	}
	return finding("acceleration", warning,
		"no KVM: "+why+". VMs are translated in software (TCG): slower, and no security boundary between them and this host", nil)
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
