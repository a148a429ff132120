package vm_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"banger/internal/errs"
	"banger/internal/op"
	"banger/internal/vm"
)

const (
	historyClients = 8
	historyLength  = 10_000
	historyNames   = 5
)

// call is what a client asks for, of the VM with this name.
type call struct{ name, verb string }

// answer is what it is told.
type answer struct {
	kind  errs.Kind // of the error, or "" if there is none
	id    string    // of the VM made, changed or found
	state vm.State  // that a look has found
}

// Whatever 8 clients do at once, what they are told is what one after the other could have
// been told: each verb takes effect at one instant between its call and its answer.
func TestHistoriesAreLinearizable(t *testing.T) {
	var history []porcupine.Operation
	inWorld(t, func(t *testing.T, w *world) {
		history = recordHistory(t, w, *seed)
		m, end := w.daemon()
		defer end()
		for _, text := range append(w.audit(m, false), w.clear(m)...) {
			t.Error(text)
		}
	})
	told := map[string]int{}
	for _, o := range history {
		told[fmt.Sprintf("%s %s", o.Input.(call).verb, o.Output.(answer).kind)]++
	}
	t.Logf("%d operations: %v", len(history), told)
	for _, verb := range []string{"create", "start", "stop", "restart", "pause", "resume", "rm", "rm -f", "look"} {
		if told[verb+" "] < 20 {
			t.Errorf("%s worked %d times only", verb, told[verb+" "])
		}
	}
	result, info := porcupine.CheckOperationsVerbose(lifeModel, history, time.Minute)
	if result == porcupine.Ok {
		return
	}
	path := filepath.Join(os.TempDir(), fmt.Sprintf("banger-history-%d.html", *seed))
	if err := porcupine.VisualizePath(lifeModel, info, path); err != nil {
		t.Error(err)
	}
	t.Errorf("the history of seed %d is %v; %s shows it", *seed, result, path)
}

// recordHistory has the clients do random things and returns what they asked and were told.
func recordHistory(t *testing.T, w *world, seed uint64) (history []porcupine.Operation) {
	m, end := w.daemon()
	defer end()
	var (
		clock atomic.Int64 // logical: the world's own stands still
		wg    sync.WaitGroup
		mu    sync.Mutex
		ops   = op.NewRegistry(t.Context())
	)
	for client := range historyClients {
		rng := rand.New(rand.NewPCG(seed, uint64(client)))
		wg.Go(func() {
			for range historyLength / historyClients {
				o := porcupine.Operation{ClientId: client}
				in := call{fmt.Sprintf("vm-%d", rng.IntN(historyNames)), callNames[rng.IntN(len(callNames))]}
				o.Input, o.Call = in, clock.Add(1)
				o.Output = in.do(t, m, ops)
				o.Return = clock.Add(1)
				mu.Lock()
				history = append(history, o)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return history
}

var callNames = []string{"create", "create", "create --stopped", "start", "start", "stop", "kill", "restart", "pause", "resume",
	"rm", "rm -f", "look", "look", "look", "look"}

func (c call) do(t *testing.T, m *vm.Manager, ops *op.Registry) (a answer) {
	if c.verb == "look" {
		v, err := m.Find(t.Context(), c.name)
		if err != nil {
			return answer{kind: errs.KindOf(err)}
		}
		return answer{id: v.ID, state: v.State}
	}
	err := ops.Start(c.verb, func(ctx context.Context, o *op.Operation) error {
		v, err := request(ctx, m, o, c.name, c.verb)
		a.id = v.ID
		return err
	}).Wait(t.Context())
	if err != nil {
		a = answer{kind: errs.KindOf(err)}
	}
	return a
}

// life is a VM as the model knows it.
type life struct {
	id    string
	state vm.State // "": there is none
	trail string   // states, each with a space, that a look may still find on the way to this one
}

// lifeModel says what each call may be told, and what it makes of a VM. Names have nothing
// to do with each other.
var lifeModel = porcupine.Model{
	Partition: func(all []porcupine.Operation) [][]porcupine.Operation {
		byName := map[string][]porcupine.Operation{}
		for _, o := range all {
			name := o.Input.(call).name
			byName[name] = append(byName[name], o)
		}
		var parts [][]porcupine.Operation
		for _, part := range byName {
			parts = append(parts, part)
		}
		return parts
	},
	Init: func() any { return life{} },
	Step: func(state, input, output any) (bool, any) {
		return state.(life).step(input.(call).verb, output.(answer))
	},
	DescribeOperation: func(input, output any) string { return fmt.Sprintf("%v → %v", input, output) },
}

func (l life) step(verb string, a answer) (bool, life) {
	switch verb {
	case "look":
		return l.look(a)
	case "create", "create --stopped":
		return l.create(after[verb], a)
	}
	l.trail = "" // a verb waits until the one before is through
	next, kind := l.verb(verb)
	switch {
	case a.kind != kind:
		return false, l
	case kind != "":
		return true, l
	}
	return a.id == l.id, next
}

// verb says what a verb makes of the VM, or what kind of error it gives.
func (l life) verb(verb string) (life, errs.Kind) {
	runs := l.state == vm.Running || l.state == vm.Paused
	to, trail := after[verb], ""
	switch {
	case l.state == "":
		return l, errs.NotFound
	case verb == "start" && runs, verb == "rm" && runs, (verb == "pause" || verb == "resume") && !runs:
		return l, errs.Conflict
	case (verb == "stop" || verb == "kill") && runs:
		trail = "stopping "
	case verb == "restart" && runs:
		trail = "stopping stopped "
	case verb == "rm", verb == "rm -f":
		to, trail = "", "deleting "
	}
	return life{l.id, to, trail}, ""
}

func (l life) create(to vm.State, a answer) (bool, life) {
	if a.kind == "" {
		return l.state == "", life{a.id, to, "creating "}
	}
	return a.kind == errs.Conflict && (l.state != "" || l.trail != ""), l
}

// look says whether a look at the VM may find this, and that nothing before it can be found
// from then on.
func (l life) look(a answer) (bool, life) {
	if a.kind != "" {
		return a.kind == errs.NotFound && l.state == "", life{}
	}
	if a.id != l.id {
		return false, l
	}
	if a.state == l.state {
		l.trail = ""
		return true, l
	}
	_, rest, found := strings.Cut(l.trail, string(a.state)+" ")
	l.trail = string(a.state) + " " + rest
	return found, l
}

// The model itself tells apart what can be and what can not.
func TestTheModelRefusesLies(t *testing.T) {
	ok := func(verb, id string) porcupine.Operation {
		return porcupine.Operation{Input: call{"web", verb}, Output: answer{id: id}}
	}
	look := func(id string, s vm.State) porcupine.Operation {
		return porcupine.Operation{Input: call{"web", "look"}, Output: answer{id: id, state: s}}
	}
	none := porcupine.Operation{Input: call{"web", "look"}, Output: answer{kind: errs.NotFound}}
	for name, tc := range map[string]struct {
		history []porcupine.Operation
		want    bool
	}{
		"a life":                     {[]porcupine.Operation{none, ok("create", "1"), look("1", vm.Running), ok("stop", "1"), look("1", vm.Stopped), ok("rm", "1"), none}, true},
		"lost after it was made":     {[]porcupine.Operation{ok("create", "1"), none}, false},
		"running after stop":         {[]porcupine.Operation{ok("create", "1"), ok("stop", "1"), look("1", vm.Running)}, false},
		"two of a name":              {[]porcupine.Operation{ok("create", "1"), ok("create", "2")}, false},
		"there after rm":             {[]porcupine.Operation{ok("create", "1"), ok("rm -f", "1"), look("1", vm.Running)}, false},
		"rm of what runs":            {[]porcupine.Operation{ok("create", "1"), ok("rm", "1")}, false},
		"stopping after it stopped":  {[]porcupine.Operation{ok("create", "1"), ok("stop", "1"), look("1", vm.Stopped), look("1", vm.Stopping)}, false},
		"a twin stopped in its name": {[]porcupine.Operation{ok("create", "1"), ok("stop", "2")}, false},
	} {
		for i := range tc.history {
			tc.history[i].Call, tc.history[i].Return = int64(2*i), int64(2*i+1)
		}
		if got := porcupine.CheckOperations(lifeModel, tc.history); got != tc.want {
			t.Errorf("%s: the model says %v", name, got)
		}
	}
}
