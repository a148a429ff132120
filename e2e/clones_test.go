package e2e

import (
	"fmt"
	"maps"
	"strings"
	"sync"
	"testing"
)

// naming is a program that runs when its VM is saved, and makes a UUID whenever it is asked.
const naming = `mkfifo /run/ask /run/tell; (while read x </run/ask; do read id </proc/sys/kernel/random/uuid; echo $id >/run/tell; done) >/dev/null 2>&1 </dev/null &`

// individuals checks that no two VMs have one and the same of anything that makes a VM itself.
type individuals struct {
	*banger
	of    map[string]string // VMs by what they have
	kinds map[string]int    // how many have been seen of what
}

const uuidOfProgram = "UUID of a program that was running already"

func (all *individuals) add(name string) {
	all.t.Helper()
	id := all.identity(name)
	for line := range strings.Lines(all.ok("ssh-known-hosts")) {
		if key, ok := strings.CutPrefix(line, name+".vm "); ok {
			id["SSH host key"] = key
		}
	}
	if r := all.run("", "exec", name, "--", "sh", "-c", "test -p /run/ask && "+count); r.code == 0 {
		id[uuidOfProgram] = r.out
	}
	if id["SSH host key"] == "" {
		all.t.Errorf("%s has no SSH host key", name)
	}
	for what, value := range id {
		if other, taken := all.of[what+" "+value]; taken || strings.TrimSpace(value) == "" {
			all.t.Errorf("%s and %s have the same %s: %q", name, other, what, value)
		}
		all.of[what+" "+value] = name
		all.kinds[what]++
	}
}

// gone stops the VMs, checks their disks and removes them.
func (all *individuals) gone(names ...string) {
	all.t.Helper()
	all.ok("ssh", names[0], "--", "true") // which takes it by its host key
	all.ok(append([]string{"stop"}, names...)...)
	for _, name := range names {
		all.whole(name)
	}
	all.ok(append([]string{"rm"}, names...)...)
	maps.DeleteFunc(all.of, func(has, _ string) bool { return strings.HasPrefix(has, "IP address ") }) // others get them now
}

// Two hundred clones in turn, twenty at once, and twenty live copies of one VM: each is one of its
// own, each disk is whole, and of none is anything left.
func TestClonesAreIndividuals(t *testing.T) {
	if !*long {
		t.Skip("SKIP: make test-long runs it")
	}
	b := warm(t)
	all := &individuals{b, map[string]string{}, map[string]int{}}
	b.ok("template", "build", "tiny")
	var names []string
	for i := range 200 {
		names = append(names, b.vm("--name", fmt.Sprintf("turn-%d", i), "--warm"))
		all.add(names[len(names)-1])
		if len(names) == 10 {
			all.gone(names...)
			b.census()
			names = nil
		}
	}
	var wg sync.WaitGroup
	for i := range 20 {
		names = append(names, fmt.Sprintf("once-%d", i))
		wg.Go(func() { b.ok("run", "-d", "--image", "tiny", "--warm", "--name", names[i]) })
	}
	wg.Wait()
	for _, name := range names {
		all.add(name)
	}
	all.gone(names...)
	b.census()

	source := b.vm("--name", "source", "--warm")
	b.ok("exec", source, "--", "sh", "-c", naming)
	all.add(source)
	copies := strings.Fields(b.ok("fork", "-n", "20", source))
	if len(copies) != 20 {
		t.Fatalf("the copies are %q", copies)
	}
	for _, name := range copies {
		all.add(name)
	}
	all.gone(append(copies, source)...)
	b.census()
	if all.kinds[uuidOfProgram] != len(copies)+1 {
		t.Errorf("%d VMs had a program that was running already", all.kinds[uuidOfProgram])
	}
	t.Logf("values, all different: %v", all.kinds)
}
