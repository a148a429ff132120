package service

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// settings reads a unit's assignments, those of a name that comes again added up.
func settings(t *testing.T, kind string) map[string][]string {
	t.Helper()
	b, err := files.ReadFile("files/" + kind + "/bangerd.service")
	if err != nil {
		t.Fatal(err)
	}
	all := map[string][]string{}
	for line := range strings.Lines(string(b)) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok && !strings.HasPrefix(name, "#") {
			if name == "DeviceAllow" { // a device and what may be done with it
				all[name] = append(all[name], value)
			} else {
				all[name] = append(all[name], strings.Fields(value)...)
			}
		}
	}
	return all
}

func is(t *testing.T, unit map[string][]string, name string, values ...string) {
	t.Helper()
	if !slices.Equal(unit[name], values) {
		t.Errorf("%s is %q, and must be %q", name, unit[name], values)
	}
}

func has(t *testing.T, unit map[string][]string, name string, values ...string) {
	t.Helper()
	for _, v := range values {
		if !slices.Contains(unit[name], v) {
			t.Errorf("%s lacks %s", name, v)
		}
	}
}

// What root's daemon does, its unit must not forbid.
func TestWhatTheSystemUnitAllows(t *testing.T) {
	unit := settings(t, "system")
	is(t, unit, "KillMode", "process")   // VMs outlive the daemon
	is(t, unit, "OOMPolicy", "continue") // and the daemon them
	is(t, unit, "TasksMax", "infinity")  // those unjailed are in its cgroup
	has(t, unit, "CapabilityBoundingSet",
		"CAP_SYS_ADMIN", "CAP_SETPCAP", "CAP_SETUID", "CAP_SETGID", "CAP_CHOWN", "CAP_FOWNER", "CAP_MKNOD", // jail: mounts, pivot_root, dropping it all
		"CAP_NET_ADMIN", "CAP_NET_BIND_SERVICE", // bridge, TAPs and rules; DNS
		"CAP_SYS_CHROOT", "CAP_SETFCAP", "CAP_FSETID", "CAP_DAC_OVERRIDE", // building images
		"CAP_KILL", "CAP_SYS_PTRACE") // VMMs are other users
	for why, names := range map[string][]string{
		"it has loop and dm devices":              {"PrivateDevices"},
		"QEMU makes code as it runs":              {"MemoryDenyWriteExecute"},
		"images have set-user-ID programs":        {"RestrictSUIDSGID"},
		"its bridge is the host's":                {"PrivateNetwork", "PrivateUsers"},
		"kernels are imported with their modules": {"ProtectKernelModules"}, // hides /lib/modules
		"images and bundles are imported of /tmp": {"PrivateTmp"},
	} {
		for _, name := range names {
			if v, there := unit[name]; there {
				t.Errorf("%s, and %s=%s", why, name, v)
			}
		}
	}
	// The hosts file is replaced by a rename; of a file alone that mount would go on to show the old.
	has(t, unit, "ReadWritePaths", "-@LIBDIR@", "/etc", "/tmp", "/var/tmp", "/proc/sys/net")
	is(t, unit, "RestrictNamespaces", "mnt", "ipc", "net") // of jailed VMMs
	has(t, unit, "DeviceAllow", "/dev/kvm rw", "/dev/net/tun rw", "/dev/loop-control rw", "/dev/mapper/control rw",
		"block-loop rwm", "block-device-mapper rwm",
		"/dev/console m") // in images; the other nodes that mmdebstrap makes are always allowed
	// Names of drivers that are not loaded are passed over when it starts, so they are loaded before.
	for _, module := range []string{"modprobe@loop.service", "modprobe@dm_mod.service", "modprobe@tun.service"} {
		has(t, unit, "Wants", module)
		has(t, unit, "After", module)
	}
	has(t, unit, "RestrictAddressFamilies", "AF_UNIX", "AF_INET", "AF_INET6", "AF_NETLINK")
}

func TestSystemCallsOfTheSystemUnit(t *testing.T) {
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("SKIP: this host has no systemd-analyze")
	}
	allowed := map[string]bool{}
	var expand func(name string)
	expand = func(name string) {
		if !strings.HasPrefix(name, "@") || allowed[name] {
			allowed[name] = true
			return
		}
		allowed[name] = true
		out, err := exec.Command(analyze, "--no-pager", "syscall-filter", name).Output()
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		for line := range strings.Lines(string(out)) {
			if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
				expand(line)
			}
		}
	}
	for _, name := range settings(t, "system")["SystemCallFilter"] {
		expand(name)
	}
	for _, call := range []string{
		"clone", "unshare", "setns", "execve", "pidfd_open", "pidfd_send_signal", // machines
		"mount", "umount2", "pivot_root", "open_tree", "move_mount", "mount_setattr", "chroot", "mknodat", // jails and images
		"prctl", "setgroups", "setresuid", "setresgid", "capset", "prlimit64", "fchown", "chown",
		"seccomp", // of QEMU and Firecracker, for themselves
		"ioctl", "memfd_create", "eventfd2", "madvise", "mlock", "sched_setaffinity", "userfaultfd", "copy_file_range", "renameat2", "flock",
	} {
		if !allowed[call] {
			t.Errorf("%s is not allowed", call)
		}
	}
}

// A user's manager can filter nothing but for those without new privileges, and newuidmap, which
// images are built with, has to have them.
func TestWhatTheUserUnitAllows(t *testing.T) {
	unit := settings(t, "user")
	is(t, unit, "KillMode", "process")
	is(t, unit, "OOMPolicy", "continue")
	is(t, unit, "TasksMax", "infinity")
	for _, name := range []string{"NoNewPrivileges", "LockPersonality", "RestrictRealtime", "SystemCallArchitectures", "SystemCallFilter",
		"RestrictAddressFamilies", "RestrictNamespaces", "PrivateDevices", "ProtectClock", "MemoryDenyWriteExecute", "RestrictSUIDSGID"} {
		if _, there := unit[name]; there {
			t.Errorf("%s leaves images without their users", name)
		}
	}
}
