package e2e

import (
	"flag"
	"strings"
	"testing"
)

var long = flag.Bool("long", false, "also run what takes minutes")

// Docker Engine of the image debian-docker runs a container on the VM's own disk.
func TestDocker(t *testing.T) {
	if !*long {
		t.Skip("SKIP: it takes minutes; make test-long runs it")
	}
	b := newBanger(t)
	b.outside("image", "build", "debian-docker")
	b.outside("daemon", "stop")
	b.ok("run", "-d", "--name", "docker", "--image", "debian-docker", "--memory", "1G")
	sh := func(script string) string {
		t.Helper()
		return b.ok("exec", "docker", "--", "sh", "-ec", script)
	}
	if out := sh("docker info --format '{{.Driver}} {{.DockerRootDir}}'; findmnt -n -o SOURCE -T /var/lib/docker"); out != "overlay2 /var/lib/docker\n/dev/vda\n" {
		t.Errorf("Docker says %q", out)
	}
	// A root filesystem of the guest's own, for there may be no registry.
	sh("mkdir -p /tmp/root/bin && cp /bin/sh /bin/cat /bin/echo /tmp/root/bin/ && cd /tmp/root && " +
		"for l in $(ldd /bin/sh /bin/cat | grep -o '/lib[^ ]*' | sort -u); do mkdir -p .$(dirname $l); cp $l .$l; done; tar c . | docker import - mine")
	if out := sh("docker run --rm -v /etc/os-release:/release:ro mine /bin/sh -c 'echo inside; cat /release'"); !strings.HasPrefix(out, "inside\n") || !strings.Contains(out, "bookworm") {
		t.Errorf("a container says %q", out)
	}
	if out := sh("docker run --rm --network none mine /bin/echo alone"); out != "alone\n" {
		t.Errorf("a container without a network says %q", out)
	}
	sh("systemctl restart docker; docker run --rm mine /bin/echo again")
}
