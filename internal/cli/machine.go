package cli

import (
	"github.com/spf13/cobra"

	"banger/api"
)

const waitUsage = "be done once the image's init has finished its start (`boot`, the default) or the guest answers (agent)"

// machineFlags gives cmd the flags that describe a new VM and returns where they go.
func (a *app) machineFlags(cmd *cobra.Command) *api.CreateVM {
	req := new(api.CreateVM)
	f := cmd.Flags()
	f.StringVar(&req.Name, "name", "", "name of the VM; one is invented if none is given")
	f.StringVar(&req.Image, "image", "", "`image` that its disk is based on")
	f.StringVar(&req.From, "from", "", "go on from a `snapshot`, whose machine it then has")
	shapeFlags(cmd, req)
	f.StringArrayVarP(&req.Forwards, "publish", "p", nil, "forward a `port` of the host: "+forwardSyntax)
	f.BoolVar(&req.Isolated, "isolated", false, "on the bridge: neither reach other VMs nor be reached by them")
	f.BoolVar(&req.HostAccess, "host-access", false, "on the bridge: reach every service of the host")
	f.BoolVar(&req.Autostart, "autostart", false, "start it again after a restart of the host, if it ran then")
	bootFlags(cmd, &req.Boot)
	f.VarP(envFlag{&req.Env, a.lookupEnv}, "env", "e", "variable of every command in the VM; K alone takes it from here")
	return req
}

// shapeFlags are those that say what machine a VM has.
func shapeFlags(cmd *cobra.Command, req *api.CreateVM) {
	var cpus int
	var limit api.DiskLimit
	var rate *int64
	f := cmd.Flags()
	f.StringVar(&req.Kernel, "kernel", "", "`kernel` that it boots")
	f.IntVar(&cpus, "cpus", 0, "number of CPUs")
	f.Var(size{&req.MemoryBytes}, "memory", "memory, as in 1G")
	f.Var(size{&req.DiskBytes}, "disk", "size of its disk, as in 8G; at least the image's")
	f.StringVar(&req.DiskDriver, "disk-driver", "", "what makes its disk: auto, qcow2, reflink, dm or copy")
	f.Var(size{&rate}, "disk-rate", "most that is read from its disk and written to it in a second, as in 50M")
	f.Int64Var(&limit.RequestsPerSecond, "disk-iops", 0, "most requests to its disk in a second")
	f.BoolVar(&req.HugePages, "huge-pages", false, "make its memory of the host's pages of 2 MiB, which must be reserved")
	f.StringVar(&req.Net, "net", "", "network: auto, bridge, user or none")
	f.StringVar(&req.Backend, "backend", "", "what runs it: auto (firecracker where it can), firecracker or qemu")
	f.StringVar(&req.Accel, "accel", "", "acceleration: auto, kvm or tcg")
	f.BoolVar(&req.Nested, "nested", false, "give it a CPU that shows virtualization, so that it can run VMs itself")
	f.BoolVar(&req.Unjailed, "unjailed", false, "do not confine its VMM, which then has all rights of the daemon")
	cmd.PreRun = func(cmd *cobra.Command, _ []string) {
		if cmd.Flags().Changed("cpus") {
			req.CPUs = &cpus
		}
		if rate != nil {
			limit.BytesPerSecond = *rate
		}
		if limit != (api.DiskLimit{}) {
			req.DiskLimit = &limit
		}
	}
}

// bootFlags are those that say how a VM starts.
func bootFlags(cmd *cobra.Command, to *string) {
	for _, b := range []struct{ name, boot, usage string }{
		{"fresh", "cold", "boot it, even if there is a template to start warm from"},
		{"warm", "warm", "start it warm or not at all: from a template, a saved machine that has booted"},
	} {
		cmd.Flags().Var(bootFlag{to, b.boot}, b.name, b.usage)
		cmd.Flags().Lookup(b.name).NoOptDefVal = "true"
	}
}
