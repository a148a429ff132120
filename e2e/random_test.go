package e2e

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"banger/api"
)

var (
	rounds = flag.Int("rounds", 40, "how often the daemon is killed among random verbs")
	seed   = flag.Uint64("seed", 0, "of the random verbs; 0: another each time")
)

// recovery is how long a daemon that comes after a crash may take until it serves.
const recovery = 5 * time.Second

// model is what a client knows of the VM with one name: what it was told last, and whether
// a verb was under way after that, so that either may be true.
type model struct {
	exists, unsure bool
}

// The daemon is killed at random moments among random verbs of four clients. Whatever was
// acknowledged is true afterwards, and nothing else is left.
func TestRandomVerbsAndCrashes(t *testing.T) {
	b := newBanger(t)
	s := *seed
	if s == 0 {
		s = rand.Uint64()
	}
	t.Logf("-seed %d -rounds %d", s, *rounds)
	pids := map[string]int{"keeper-1": 0, "keeper-2": 0} // real VMs that outlive every crash
	for name := range pids {
		b.vm("--name", name, "--wait", "agent", "--memory", "96M")
		pids[name] = b.inspect(name).PID
	}
	known := map[string]*model{}
	for i := range 12 {
		known[fmt.Sprint("vm-", i)] = &model{}
	}
	longest := time.Duration(0)
	for round := range *rounds {
		b.storm(rand.New(rand.NewPCG(s, uint64(round))), known)
		begin := time.Now()
		b.ok("daemon", "start")
		longest = max(longest, time.Since(begin))
		b.census()
		vms := b.list()
		for name, m := range known {
			v, exists := vms[name]
			if !m.unsure && exists != m.exists {
				t.Errorf("round %d: %s exists: %t, and %t was acknowledged", round, name, exists, m.exists)
			}
			if exists && v.State != api.StateStopped && v.State != api.StateRunning {
				t.Errorf("round %d: %s is %s: %s", round, name, v.State, v.Error)
			}
			*m = model{exists: exists}
		}
		for name, pid := range pids {
			if v := vms[name]; v.PID != pid || v.State != api.StateRunning && v.State != api.StatePaused {
				t.Errorf("round %d: %s: %+v; it was process %d", round, name, v, pid)
			}
		}
		if t.Failed() {
			t.FailNow()
		}
	}
	if longest > recovery {
		t.Errorf("a recovery took %v", longest)
	}
	t.Logf("%d crashes; the longest recovery, with the start of the daemon: %v", *rounds, longest)
	b.ok("resume", "keeper-1", "keeper-2")
	b.consistent()
}

// storm has four clients do random things and kills the daemon in the midst of them.
func (b *banger) storm(r *rand.Rand, known map[string]*model) {
	client := b.client()
	ctx, cancel := context.WithTimeout(b.t.Context(), time.Minute)
	defer cancel()
	var clients sync.WaitGroup
	names := [4][]string{}
	for name := range known { // each VM has one client: it knows what it was told
		var n int
		fmt.Sscanf(name, "vm-%d", &n)
		names[n%4] = append(names[n%4], name)
	}
	for i := range names {
		own := rand.New(rand.NewPCG(r.Uint64(), uint64(i)))
		clients.Go(func() {
			for {
				name := names[i][own.IntN(len(names[i]))]
				err := randomVerb(ctx, client, own, name, known[name])
				if errors.Is(err, api.ErrGone) || errors.Is(err, api.ErrNoDaemon) {
					return
				}
				if api := (*api.Error)(nil); err != nil && !errors.As(err, &api) {
					return // the connection broke in the middle of an answer
				}
			}
		})
	}
	pid := b.daemonPID()
	select {
	case <-time.After(time.Duration(r.IntN(250)) * time.Millisecond):
	case <-ctx.Done():
	}
	b.signal(pid, unix.SIGKILL)
	clients.Wait()
}

// randomVerb does one thing, mostly to the VM with this name, and notes what it learned.
func randomVerb(ctx context.Context, client *api.Client, r *rand.Rand, name string, m *model) error {
	req := api.CreateVM{Name: name, Image: "tiny", Net: "none", Wait: "agent"}
	keeper := fmt.Sprint("keeper-", 1+r.IntN(2))
	var err error
	switch n := r.IntN(100); {
	case n < 25:
		_, err = client.VMs(ctx)
		return err
	case n < 30:
		_, err = client.Census(ctx)
		return err
	case n < 35:
		_, err = client.PauseVM(ctx, keeper, nil)
		return err
	case n < 42:
		_, err = client.ResumeVM(ctx, keeper, nil)
		return err
	case n < 44:
		if m.exists {
			_, err = client.StartVM(ctx, name, api.StartVM{Wait: "agent"}, nil)
		}
		return err
	case !m.exists:
		m.unsure = true
		req.Start = n >= 98
		_, err = client.CreateVM(ctx, req, nil)
		*m = model{exists: err == nil, unsure: err != nil}
		return err
	}
	m.unsure = true
	_, err = client.RemoveVM(ctx, name, true, nil)
	*m = model{exists: err != nil, unsure: err != nil}
	return err
}
