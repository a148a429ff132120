package vm_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"banger/internal/errs"
	"banger/internal/op"
	"banger/internal/vm"
)

// seed is that of the first chain of random tests. What each client does follows from it;
// how they are interleaved is the scheduler's.
var seed = flag.Uint64("seed", 1, "first seed of random tests")

const (
	chains  = 8
	rounds  = 300 // of each chain
	clients = 4
)

// Daemon after daemon is cut at a random step, or has a random step fail, while several
// clients do random things. What was acknowledged holds, and nothing is left behind.
func TestDaemonsAreCutAtRandom(t *testing.T) {
	for i := range uint64(chains) {
		t.Run(fmt.Sprintf("seed %d", *seed+i), func(t *testing.T) {
			t.Parallel()
			inWorld(t, func(t *testing.T, w *world) {
				c := newChain(t, w, *seed+i)
				defer func() { c.end() }()
				for n := range rounds {
					if c.round(n); t.Failed() {
						t.Fatalf("in round %d of seed %d", n, *seed+i)
					}
				}
				t.Logf("%d rounds, %d operations acknowledged, %d cuts, %d failures of a step, %d databases lost",
					rounds, c.acknowledged, c.count[cuts], c.count[fails], c.lost)
				if c.acknowledged < rounds || c.count[cuts] < rounds/2 {
					t.Error("that is too little to tell anything")
				}
				for _, text := range w.clear(c.m) {
					t.Errorf("at the end: %s", text)
				}
			})
		})
	}
}

// chain is a world with clients that live through many daemons.
type chain struct {
	*testing.T
	w   *world
	m   *vm.Manager
	end func()
	rng *rand.Rand

	count map[trouble]int
	lost  int

	mu           sync.Mutex
	acknowledged int
	own          []map[string]*belief // by client, by name
	shared       map[string]*promise  // by id
}

// belief is what the one client that uses a name may expect of the VM.
type belief struct {
	id  string     // "": there is none
	may []vm.State // "" stands for: it is not there
}

func (b belief) is() vm.State { return b.may[0] }

// promise is the life of a VM that all clients use: once created it is there until someone
// asked for its removal.
type promise struct{ created, condemned bool }

func newChain(t *testing.T, w *world, seed uint64) *chain {
	c := &chain{T: t, w: w, rng: rand.New(rand.NewPCG(seed, 0)), count: map[trouble]int{}, shared: map[string]*promise{}}
	for i := range clients {
		c.own = append(c.own, map[string]*belief{
			fmt.Sprintf("a-%d", i): {may: []vm.State{""}},
			fmt.Sprintf("b-%d", i): {may: []vm.State{""}},
		})
	}
	c.m, c.end = w.daemon()
	return c
}

// round lets the clients at one daemon until the trouble, and looks at what the next makes
// of it.
func (c *chain) round(n int) {
	does := cuts
	if c.rng.IntN(4) == 0 {
		does = fails
	}
	c.w.gate.arm(1+c.rng.IntN(100), does)
	var wg sync.WaitGroup
	for i := range clients {
		rng := rand.New(rand.NewPCG(c.rng.Uint64(), 0))
		wg.Go(func() {
			for range 6 {
				if c.act(i, rng, does) == errCut {
					return
				}
			}
		})
	}
	wg.Wait()
	c.end()
	if where, _ := c.w.gate.disarm(); where != "" {
		c.count[does]++
	}
	c.m, c.end = c.w.daemon()
	c.check(fmt.Sprintf("round %d", n))
	if c.rng.IntN(20) == 0 {
		c.lost++
		c.end()
		c.condemned()
		c.w.losesStore()
		c.m, c.end = c.w.daemon()
		c.check(fmt.Sprintf("round %d, the database lost", n))
	}
}

// condemned allows those VMs to be lost with the database whose removal has failed, but not
// before it had taken their directories away, and the copies with them.
func (c *chain) condemned() {
	for _, names := range c.own {
		for _, b := range names {
			if _, err := os.Stat(c.m.Dirs.Path(b.id)); err != nil && b.is() == vm.Failed {
				b.may = append(b.may, "")
			}
		}
	}
}

// check compares what clients may expect with what there is.
func (c *chain) check(when string) {
	synctest.Wait()
	for _, text := range c.w.audit(c.m, false) {
		c.Errorf("%s: %s", when, text)
	}
	vms, err := c.m.List(c.Context())
	if err != nil {
		c.Fatal(err)
	}
	there := map[string]vm.VM{}
	for _, v := range vms {
		there[v.Name], there[v.ID] = v, v
	}
	for _, names := range c.own {
		for name, b := range names {
			v := there[name]
			if !slices.Contains(b.may, v.State) || b.id != "" && v.ID != "" && v.ID != b.id {
				c.Errorf("%s: VM %s is %q (%s), id %s; its client expects one of %q, id %s", when, name, v.State, v.Reason, v.ID, b.may, b.id)
			}
			*b = belief{id: v.ID, may: []vm.State{v.State}}
		}
	}
	for id, p := range c.shared {
		if _, ok := there[id]; p.created && !p.condemned && !ok {
			c.Errorf("%s: VM %s, which was acknowledged, is lost", when, id)
		}
	}
}

// after tells where verbs lead that work.
var after = map[string]vm.State{
	"create": vm.Running, "create --stopped": vm.Stopped, "start": vm.Running, "stop": vm.Stopped, "kill": vm.Stopped,
	"restart": vm.Running, "pause": vm.Paused, "resume": vm.Running, "rm -f": "",
}

var verbNames = []string{"create", "create", "create --stopped", "start", "start", "stop", "kill", "restart", "pause", "resume", "rm -f"}

// act has client i do something.
func (c *chain) act(i int, rng *rand.Rand, does trouble) error {
	verb := verbNames[rng.IntN(len(verbNames))]
	if rng.IntN(4) == 0 {
		return c.actOnShared(fmt.Sprintf("s-%d", rng.IntN(2)), verb)
	}
	name := fmt.Sprintf("%c-%d", 'a'+rng.IntN(2), i)
	b := c.own[i][name]
	if len(b.may) > 1 {
		return nil // until a recovery has brought clarity
	}
	if b.is() == vm.Running && rng.IntN(10) == 0 {
		c.w.endMachine(c.m.Dirs.Path(b.id))
		b.may = []vm.State{vm.Failed, vm.Stopped} // the latter if the daemon did not live to see it
		return nil
	}
	v, err := c.do(name, verb)
	if err == nil {
		if v.ID != "" {
			b.id = v.ID
		}
		switch next := after[verb]; {
		case next == "":
			b.id, b.may = "", []vm.State{""}
		case b.is() == vm.Failed && next == vm.Stopped && v.State == vm.Failed: // nothing of it ran
		case v.State != next:
			c.Errorf("%s of VM %s, which was %q, made it %q", verb, name, b.is(), v.State)
		default:
			b.may = []vm.State{next}
		}
		return nil
	}
	if kind := errs.KindOf(err); kind == errs.Conflict || kind == errs.NotFound {
		return nil // it is what it was; check sees to that
	}
	b.may = append(b.may, after[verb])
	if verb == "restart" {
		b.may = append(b.may, vm.Stopped)
	}
	if does == fails { // what it may have failed at, it says; and what can't be stopped goes on
		b.may = append(b.may, vm.Failed)
		if b.is() == vm.Paused {
			b.may = append(b.may, vm.Running)
		}
	}
	return cutOr(err)
}

func cutOr(err error) error {
	if errors.Is(err, errCut) {
		return errCut
	}
	return err
}

// actOnShared has a client do something to a VM that others use as well.
func (c *chain) actOnShared(name, verb string) error {
	if verb == "rm -f" {
		v, err := c.m.Find(c.Context(), name)
		if err != nil {
			return nil
		}
		c.mu.Lock()
		c.promised(v.ID).condemned = true
		c.mu.Unlock()
		return cutOr(c.m.Delete(c.Context(), v.ID, true))
	}
	v, err := c.do(name, verb)
	if err == nil && after[verb] != "" && v.ID != "" {
		c.mu.Lock()
		c.promised(v.ID).created = true
		c.mu.Unlock()
	}
	return cutOr(err)
}

func (c *chain) promised(id string) *promise {
	if c.shared[id] == nil {
		c.shared[id] = &promise{}
	}
	return c.shared[id]
}

// do does the verb to the VM with this name and returns the VM that it made or changed.
func (c *chain) do(name, verb string) (v vm.VM, err error) {
	_, err = operation(c.T, func(ctx context.Context, o *op.Operation) error {
		v, err = request(ctx, c.m, o, name, verb)
		return err
	})
	if err == nil {
		c.mu.Lock()
		c.acknowledged++
		c.mu.Unlock()
	}
	return v, err
}

// request has the manager do a verb to the VM with this name.
func request(ctx context.Context, m *vm.Manager, o *op.Operation, name, verb string) (v vm.VM, err error) {
	switch verb {
	case "create", "create --stopped":
		return m.Create(ctx, o, vm.Request{Name: name, Start: verb == "create"})
	}
	if v, err = m.Find(ctx, name); err != nil {
		return v, err
	}
	switch verb {
	case "start":
		return m.Start(ctx, o, v.ID, "", "")
	case "stop":
		return m.Stop(ctx, o, v.ID, time.Minute)
	case "kill":
		return m.Stop(ctx, o, v.ID, 0)
	case "restart":
		return m.Restart(ctx, o, v.ID, time.Minute, "")
	case "pause":
		return m.Pause(ctx, v.ID)
	case "resume":
		return m.Resume(ctx, o, v.ID)
	case "rm":
		return v, m.Delete(ctx, v.ID, false)
	case "rm -f":
		return v, m.Delete(ctx, v.ID, true)
	}
	panic("there is no verb " + verb)
}
