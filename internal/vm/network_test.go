package vm_test

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"banger/internal/errs"
	"banger/internal/host"
	"banger/internal/op"
	"banger/internal/vm"
)

// bridgedWorld is a host on which VMs can be bridged.
func bridgedWorld(t *testing.T) *world {
	w := newWorld(t)
	w.net.choice = "10.1.0.0/24"
	return w
}

func TestAutoMeansTheBridgeWhereThereIsOne(t *testing.T) {
	for choice, want := range map[string]vm.Net{"": vm.NetUser, "10.1.0.0/24": vm.NetBridge} {
		w := newWorld(t)
		w.net.choice = choice
		m, end := w.daemon()
		defer end()
		v, err := create(t, m, vm.Request{Name: "a"})
		if err != nil || v.Spec.Net != want || v.Address.IsValid() != (want == vm.NetBridge) {
			t.Errorf("with %q: %+v, %v", choice, v, err)
		}
		conf := w.lastConf
		if len(conf.Links) != 1 || len(conf.Nameservers) != 1 || conf.Links[0].MAC != v.MAC {
			t.Fatalf("the guest got %+v", conf)
		}
		if want == vm.NetBridge && (conf.Links[0].Addresses[0] != v.Address.String() || conf.Links[0].Gateway != "10.1.0.1" || conf.Nameservers[0] != "10.1.0.1") {
			t.Errorf("the guest got %+v", conf)
		}
	}
}

// A bridge that is configured and can't be had is no reason for another network.
func TestAutoIsNotForWhatIsConfiguredWrong(t *testing.T) {
	w := newWorld(t)
	w.net.foreign = true
	m, end := w.daemon()
	defer end()
	if v, err := create(t, m, vm.Request{Name: "a"}); errs.KindOf(err) != errs.Conflict {
		t.Errorf("it is made with %s, %v", v.Spec.Net, err)
	}
	if _, err := create(t, m, vm.Request{Name: "b", Net: "user"}); err != nil {
		t.Errorf("one that does not want it: %v", err)
	}
}

func TestFiftyVMsAtOnceHaveAddressesOfTheirOwn(t *testing.T) {
	w := bridgedWorld(t)
	m, end := w.daemon()
	defer end()
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			if _, err := create(t, m, vm.Request{Name: fmt.Sprint("vm", i)}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	vms, err := m.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, v := range vms {
		for _, s := range []string{v.Address.Addr().String(), v.MAC, v.Name} {
			if seen[s] {
				t.Errorf("%s twice", s)
			}
			seen[s] = true
		}
	}
	if len(seen) != 150 || len(w.net.ports) != 50 {
		t.Errorf("%d VMs, %d ports", len(vms), len(w.net.ports))
	}
}

func TestAnAddressStaysWithItsVM(t *testing.T) {
	w := bridgedWorld(t)
	w.net.choice = "10.1.0.0/29" // room for five
	m, end := w.daemon()
	defer end()
	had := map[string]netip.Prefix{}
	for i := range 5 {
		v, err := create(t, m, vm.Request{Name: fmt.Sprint("vm", i)})
		if err != nil {
			t.Fatal(err)
		}
		had[v.Name] = v.Address
	}
	if _, err := create(t, m, vm.Request{Name: "one-too-many"}); errs.KindOf(err) != errs.Unavailable || errs.HintOf(err) == "" {
		t.Errorf("a full subnet: %v", err)
	}
	w.net.choice = "10.2.0.0/24" // by now another would be chosen
	for name, address := range had {
		v, err := m.Find(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		again := succeed(t, func(ctx context.Context, o *op.Operation) (vm.VM, error) {
			return m.Restart(ctx, o, v.ID, time.Second, vm.WaitAgent)
		})
		if again.Address != address {
			t.Errorf("%s had %s and has %s", name, address, again.Address)
		}
	}
	v, err := m.Find(t.Context(), "vm3")
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Delete(t.Context(), v.ID, true); err != nil {
		t.Fatal(err)
	}
	next, err := create(t, m, vm.Request{Name: "next"}) // has the only one that is free
	if err != nil || next.Address != v.Address || next.MAC == v.MAC || next.HostKeyPub == v.HostKeyPub {
		t.Errorf("after %+v came %+v, %v", v, next, err)
	}
}

// succeed runs a verb that has to succeed.
func succeed(t *testing.T, run func(context.Context, *op.Operation) (vm.VM, error)) (v vm.VM) {
	t.Helper()
	if _, err := operation(t, func(ctx context.Context, o *op.Operation) (err error) {
		v, err = run(ctx, o)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return v
}

func TestPortsGoWithTheirMachines(t *testing.T) {
	for _, step := range []string{"attach", "launch", "channel", "configure", "disk"} {
		w := bridgedWorld(t)
		m, end := w.daemon()
		w.set(func() { w.fail = step })
		_, err := create(t, m, vm.Request{Name: "a", AutoRemove: true})
		if err == nil || len(w.census()) > 0 {
			t.Errorf("%s: %v, and left %v", step, err, w.census())
		}
		end()
	}
	w := bridgedWorld(t)
	m, end := w.daemon()
	defer end()
	for _, how := range []string{"stop", "end", "rm"} {
		v, err := create(t, m, vm.Request{Name: how})
		if err != nil || !strings.Contains(w.net.text(), v.ID) {
			t.Fatalf("%v: %s", err, w.net.text())
		}
		switch how {
		case "stop":
			succeed(t, func(ctx context.Context, o *op.Operation) (vm.VM, error) { return m.Stop(ctx, o, v.ID, time.Second) })
		case "end":
			w.machines[m.Directory(v)].end("it crashed", false)
			settled(t, m, how, vm.Failed)
		case "rm":
			if err := m.Delete(t.Context(), v.ID, true); err != nil {
				t.Fatal(err)
			}
		}
		if text := w.net.text(); text != "" {
			t.Errorf("%s left %s", how, text)
		}
	}
}

// A port that can't be taken away keeps its row, and the next daemon tries again.
func TestAPortThatStays(t *testing.T) {
	w := bridgedWorld(t)
	m, end := w.daemon()
	v, err := create(t, m, vm.Request{Name: "a"})
	if err != nil {
		t.Fatal(err)
	}
	w.set(func() { w.fail = "detach" })
	if err := m.Delete(t.Context(), v.ID, true); err == nil || !strings.Contains(err.Error(), "detach fails") {
		t.Errorf("removed all the same: %v", err)
	}
	settled(t, m, "a", vm.Failed)
	w.set(func() { w.fail = "" })
	if err := m.Delete(t.Context(), v.ID, false); err != nil || len(w.census()) > 0 {
		t.Errorf("again: %v, %v", err, w.census())
	}
	end()
}

// The next daemon has the ports of all that run be there, and of nothing else.
func TestPortsAfterARestartOfTheDaemon(t *testing.T) {
	w := bridgedWorld(t)
	m, end := w.daemon()
	var ids []string
	for _, name := range []string{"a", "b", "c"} {
		v, err := create(t, m, vm.Request{Name: name, Forwards: []string{"8" + fmt.Sprintf("%03d", len(ids)) + ":80"}})
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, v.ID)
	}
	before := w.net.text()
	end()
	m, end = w.daemon()
	if after := w.net.text(); after != before {
		t.Errorf("ports were\n%s\nare\n%s", before, after)
	}
	end()
	v, err := m.Find(t.Context(), "b")
	if err == nil {
		t.Fatalf("%+v: the store is closed", v)
	}
	for dir, machine := range w.machines {
		if strings.HasSuffix(dir, ids[1]) {
			go machine.end("it went while nobody looked", true)
			<-machine.done
			break
		}
	}
	m, end = w.daemon()
	defer end()
	settled(t, m, "b", vm.Stopped)
	if text := w.net.text(); strings.Contains(text, ids[1]) || !strings.Contains(text, ids[0]) || !strings.Contains(text, ids[2]) {
		t.Errorf("ports are\n%s", text)
	}
}

func TestTheCensusKnowsPorts(t *testing.T) {
	w := bridgedWorld(t)
	m, end := w.daemon()
	defer end()
	v, err := create(t, m, vm.Request{Name: "a"})
	if err != nil {
		t.Fatal(err)
	}
	wrong := func() (all []string) {
		found, err := m.Census(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range found {
			if f.Problem != "" {
				all = append(all, f.Kind+" "+f.Name)
			}
		}
		return all
	}
	if got := wrong(); got != nil {
		t.Errorf("wrong: %v", got)
	}
	port := w.net.ports[v.ID]
	w.set(func() { delete(w.net.ports, v.ID) })
	if got := wrong(); len(got) != 1 || got[0] != "link bgr"+v.ID {
		t.Errorf("without its port: %v", got)
	}
	w.set(func() { w.net.ports[v.ID] = port })
	w.set(func() {
		w.stray = append(w.stray, host.Object{Kind: "link", Name: "bgr0000000000ff", Path: "0000000000ff"})
	})
	if got := wrong(); len(got) != 1 || got[0] != "link bgr0000000000ff" {
		t.Errorf("with a stray one: %v", got)
	}
	w.set(func() { w.stray = nil })
	succeed(t, func(ctx context.Context, o *op.Operation) (vm.VM, error) { return m.Stop(ctx, o, v.ID, time.Second) })
	for _, kind := range []string{"link", "address", "route", "nft", "sysctl"} {
		w.set(func() { w.stray = []host.Object{{Kind: kind, Name: "left"}} })
		if got := wrong(); len(got) != 1 || got[0] != kind+" left" {
			t.Errorf("what is left when nobody is on the bridge: %v", got)
		}
	}
}

func TestMove(t *testing.T) {
	w := bridgedWorld(t)
	m, end := w.daemon()
	defer end()
	move := func(subnet string) error {
		_, err := operation(t, func(ctx context.Context, o *op.Operation) error {
			var p netip.Prefix
			if subnet != "" {
				p = netip.MustParsePrefix(subnet)
			}
			_, err := m.Move(ctx, o, p)
			return err
		})
		return err
	}
	if err := move(""); errs.KindOf(err) != errs.Conflict || errs.HintOf(err) == "" {
		t.Errorf("with no VM: %v", err)
	}
	running, err := create(t, m, vm.Request{Name: "running"})
	if err != nil {
		t.Fatal(err)
	}
	stopped, err := create(t, m, vm.Request{Name: "stopped"})
	if err != nil {
		t.Fatal(err)
	}
	succeed(t, func(ctx context.Context, o *op.Operation) (vm.VM, error) {
		return m.Stop(ctx, o, stopped.ID, time.Second)
	})
	if err := move("10.99.0.0/24"); errs.KindOf(err) != errs.Conflict {
		t.Errorf("to a subnet that overlaps: %v", err)
	}
	if err := move("10.77.0.0/24"); err != nil {
		t.Fatal(err)
	}
	want := netip.MustParsePrefix("10.77.0.0/24")
	for _, name := range []string{"running", "stopped"} {
		if v, err := m.Find(t.Context(), name); err != nil || v.Address.Masked() != want {
			t.Errorf("%s: %v, %v", name, v.Address, err)
		}
	}
	now, err := m.Find(t.Context(), "running")
	if err != nil {
		t.Fatal(err)
	}
	if text := w.net.text(); !strings.HasPrefix(text, running.ID+" "+now.Address.String()) || strings.Contains(text, stopped.ID) {
		t.Errorf("ports: %s", text)
	}
	if got := w.lastConf.Links[0]; got.Addresses[0] != now.Address.String() || got.Gateway != "10.77.0.1" {
		t.Errorf("the guest knows %+v", got)
	}
	if _, err := m.Pause(t.Context(), running.ID); err != nil {
		t.Fatal(err)
	}
	if err := move(""); errs.KindOf(err) != errs.Conflict || errs.HintOf(err) != "banger resume running" {
		t.Errorf("with a paused VM: %v", err)
	}
}

// A guest that did not hear of its move is told by the next daemon.
func TestAMoveThatWasCutShort(t *testing.T) {
	w := bridgedWorld(t)
	m, end := w.daemon()
	if _, err := create(t, m, vm.Request{Name: "a"}); err != nil {
		t.Fatal(err)
	}
	w.set(func() { w.fail = "configure" })
	_, err := operation(t, func(ctx context.Context, o *op.Operation) error {
		_, err := m.Move(ctx, o, netip.MustParsePrefix("10.77.0.0/24"))
		return err
	})
	if errs.HintOf(err) != "banger restart a" {
		t.Errorf("a guest that does not hear: %v", err)
	}
	end()
	w.set(func() { w.fail = "" })
	m, end = w.daemon()
	defer end()
	v, err := m.Find(t.Context(), "a")
	if err != nil || v.State != vm.Running || w.lastConf.Links[0].Addresses[0] != v.Address.String() {
		t.Errorf("%+v, %v; the guest knows %+v", v, err, w.lastConf.Links)
	}
}

func TestForwards(t *testing.T) {
	for _, net := range []string{"bridge", "user"} {
		w := bridgedWorld(t)
		m, end := w.daemon()
		open := func(v vm.VM) string {
			if net == "bridge" {
				return fmt.Sprint(w.net.ports[v.ID].Forwards)
			}
			w.mu.Lock()
			defer w.mu.Unlock()
			var all []string
			for _, f := range v.Spec.Forwards {
				for g := range w.machines[m.Directory(v)].forwards {
					if g.Host == f.Host && g.Protocol == f.Protocol {
						all = append(all, f.String())
					}
				}
			}
			if len(all) != len(w.machines[m.Directory(v)].forwards) {
				t.Errorf("others are open: %v", w.machines[m.Directory(v)].forwards)
			}
			return fmt.Sprint(all)
		}
		v, err := create(t, m, vm.Request{Name: "a", Net: net, Forwards: []string{"18080:80", "18080:53/udp"}})
		if err != nil {
			t.Fatal(err)
		}
		if got := open(v); got != "[127.0.0.1:18080:80 127.0.0.1:18080:53/udp]" {
			t.Errorf("%s: open are %s", net, got)
		}
		change := func(add, remove []string) error {
			changed, err := m.ChangeForwards(t.Context(), v.ID, add, remove)
			if err == nil {
				v = changed
			}
			return err
		}
		if err := change([]string{"18081:81"}, []string{"18080:53/udp"}); err != nil || open(v) != "[127.0.0.1:18080:80 127.0.0.1:18081:81]" {
			t.Errorf("%s: open are %s, %v", net, open(v), err)
		}
		for _, bad := range []struct {
			add, remove []string
			kind        errs.Kind
		}{
			{[]string{"0:80"}, nil, errs.Invalid},
			{[]string{"99999:80"}, nil, errs.Invalid},
			{[]string{"18080:90"}, nil, errs.Conflict}, // its own is there
			{[]string{"0.0.0.0:18080:90"}, nil, errs.Conflict},
			{nil, []string{"18099:80"}, errs.NotFound},
		} {
			if err := change(bad.add, bad.remove); errs.KindOf(err) != bad.kind || err == nil {
				t.Errorf("%s: %+v gave %v", net, bad, err)
			}
		}
		w.set(func() { w.fail = "forward" })
		if err := change([]string{"18082:82"}, []string{"18080:80"}); err == nil {
			t.Errorf("%s: nothing failed", net)
		}
		w.set(func() { w.fail = "" })
		if again, err := m.Find(t.Context(), "a"); err != nil || fmt.Sprint(again.Spec.Forwards) != "[127.0.0.1:18080:80 127.0.0.1:18081:81]" || open(again) != fmt.Sprint(again.Spec.Forwards) {
			t.Errorf("%s: after a failure %v, open are %s, %v", net, again.Spec.Forwards, open(again), err)
		}
		succeed(t, func(ctx context.Context, o *op.Operation) (vm.VM, error) { return m.Stop(ctx, o, v.ID, time.Second) })
		if err := change([]string{"18083:83"}, nil); err != nil {
			t.Error(err)
		}
		v = succeed(t, func(ctx context.Context, o *op.Operation) (vm.VM, error) {
			return m.Start(ctx, o, v.ID, vm.WaitAgent, "")
		})
		if got := open(v); got != "[127.0.0.1:18080:80 127.0.0.1:18081:81 127.0.0.1:18083:83]" {
			t.Errorf("%s: after a restart %s", net, got)
		}
		end()
	}
}

func TestWhatTheNetworkRefuses(t *testing.T) {
	w := newWorld(t) // without a bridge
	m, end := w.daemon()
	defer end()
	for _, tc := range []struct {
		req  vm.Request
		kind errs.Kind
	}{
		{vm.Request{Net: "bridge"}, errs.Unavailable},
		{vm.Request{Net: "nat"}, errs.Invalid},
		{vm.Request{Isolated: true}, errs.Invalid},
		{vm.Request{HostAccess: true, Net: "user"}, errs.Invalid},
		{vm.Request{Net: "none", Forwards: []string{"18080:80"}}, errs.Invalid},
		{vm.Request{Forwards: []string{"18080:0"}}, errs.Invalid},
		{vm.Request{Forwards: []string{"18080:80", "18080:81"}}, errs.Conflict},
	} {
		if _, err := create(t, m, tc.req); errs.KindOf(err) != tc.kind || err == nil {
			t.Errorf("%+v gave %v", tc.req, err)
		}
	}
	if found := w.census(); len(found) > 0 {
		t.Errorf("left: %v", found)
	}
}
