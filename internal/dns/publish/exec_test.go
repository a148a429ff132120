package publish

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"banger/internal/errs"
)

// tool is a command that keeps a list of names in a file, as a name server of the user's would,
// and writes down how it was called.
type tool struct {
	*Exec
	t   *testing.T
	dir string
}

func newTool(t *testing.T) *tool {
	d := t.TempDir()
	makeTool(t, d)
	return &tool{t: t, dir: d, Exec: &Exec{Command: []string{filepath.Join(d, "tool"), d}, Journal: filepath.Join(d, "journal")}}
}

func makeTool(t *testing.T, d string) {
	script := `#!/bin/sh
dir=$1; shift
echo "$@" >>"$dir/calls"
[ ! -e "$dir/broken" ] || { echo "it is broken" >&2; exit 3; }
case $1 in
set) echo "$3" >"$dir/names/$2" ;;
del) rm -f "$dir/names/$2" ;;
esac
`
	must(t, os.Mkdir(filepath.Join(d, "names"), 0o755))
	must(t, os.WriteFile(filepath.Join(d, "tool"), []byte(script), 0o755))
}

// knows is what the command knows, a name=IP each.
func (o *tool) knows() string {
	entries, err := os.ReadDir(filepath.Join(o.dir, "names"))
	must(o.t, err)
	var all []string
	for _, e := range entries {
		all = append(all, e.Name()+"="+strings.TrimSpace(content(o.t, filepath.Join(o.dir, "names", e.Name()))))
	}
	return strings.Join(all, " ")
}

func (o *tool) calls() string {
	text, _ := os.ReadFile(filepath.Join(o.dir, "calls"))
	must(o.t, os.RemoveAll(filepath.Join(o.dir, "calls")))
	return strings.ReplaceAll(strings.TrimSpace(string(text)), "\n", ", ")
}

func (o *tool) want(step, knows, calls string) {
	o.t.Helper()
	if k, c := o.knows(), o.calls(); k != knows || c != calls {
		o.t.Errorf("%s: it knows %q after %q, want %q after %q", step, k, c, knows, calls)
	}
}

func TestExec(t *testing.T) {
	o := newTool(t)
	must(t, o.Publish(t.Context(), State{Records: two}))
	o.want("two", "db.vm=172.30.0.3 web.vm=172.30.0.2", "set db.vm 172.30.0.3, set web.vm 172.30.0.2")
	must(t, o.Publish(t.Context(), State{Records: two}))
	o.want("again", "db.vm=172.30.0.3 web.vm=172.30.0.2", "")
	moved := record("web", "172.30.0.9", "aa")
	must(t, o.Publish(t.Context(), State{Records: append(two[:1:1], moved)}))
	o.want("one moved", "db.vm=172.30.0.3 web.vm=172.30.0.9", "del web.vm 172.30.0.2, set web.vm 172.30.0.9")
	// After a crash: a process that knows only the journal.
	o.Exec = &Exec{Command: o.Command, Journal: o.Journal}
	must(t, o.Publish(t.Context(), State{Records: two[:1]}))
	o.want("after a crash", "db.vm=172.30.0.3", "del web.vm 172.30.0.9, set db.vm 172.30.0.3")
	o.Exec = &Exec{Command: o.Command, Journal: o.Journal}
	must(t, o.Withdraw(t.Context()))
	o.want("withdrawn", "", "del db.vm 172.30.0.3")
	if _, err := os.Stat(o.Journal); !os.IsNotExist(err) {
		t.Errorf("the journal is left: %v", err)
	}
	must(t, o.Withdraw(t.Context()))
	o.want("withdrawn again", "", "")
}

func TestExecThatFails(t *testing.T) {
	o := newTool(t)
	broken := filepath.Join(o.dir, "broken")
	must(t, os.WriteFile(broken, nil, 0o600))
	err := o.Publish(t.Context(), State{Records: two[:1]})
	if err == nil || !strings.Contains(err.Error(), "it is broken") || !strings.Contains(errs.HintOf(err), "set db.vm 172.30.0.3") {
		t.Errorf("got %v, hint %q", err, errs.HintOf(err))
	}
	o.want("broken", "", "set db.vm 172.30.0.3")
	must(t, os.Remove(broken))
	must(t, o.Publish(t.Context(), State{Records: two[:1]}))
	o.want("tried again", "db.vm=172.30.0.3", "set db.vm 172.30.0.3")
	must(t, os.WriteFile(broken, nil, 0o600))
	if err := o.Publish(t.Context(), State{}); err == nil {
		t.Error("no error of a deletion that failed")
	}
	must(t, os.Remove(broken))
	must(t, o.Publish(t.Context(), State{}))
	o.want("deleted at last", "", "del db.vm 172.30.0.3, del db.vm 172.30.0.3")
}

// The command that set names also deletes them when another is configured since.
func TestExecOfAnotherCommand(t *testing.T) {
	first, second := newTool(t), newTool(t)
	must(t, first.Publish(t.Context(), State{Records: two[:1]}))
	second.Journal = first.Journal
	must(t, second.Publish(t.Context(), State{Records: two[:1]}))
	first.want("the first", "", "set db.vm 172.30.0.3, del db.vm 172.30.0.3")
	second.want("the second", "db.vm=172.30.0.3", "set db.vm 172.30.0.3")
}

func TestExecIsBounded(t *testing.T) {
	o := newTool(t)
	must(t, os.WriteFile(o.Command[0], []byte("#!/bin/sh\nexec sleep 1000\n"), 0o755))
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	begin := time.Now()
	if err := o.Publish(ctx, State{Records: two[:1]}); err == nil {
		t.Error("no error")
	}
	if took := time.Since(begin); took > execLimit {
		t.Errorf("it took %s", took)
	}
}

func TestExecWithADamagedJournal(t *testing.T) {
	for _, text := range []string{"{", `{"names":{"a.vm":"1.2.3.4"}}`} {
		o := newTool(t)
		must(t, os.WriteFile(o.Journal, []byte(text), 0o600))
		if err := o.Publish(t.Context(), State{Records: two}); err == nil || !strings.Contains(err.Error(), o.Journal) {
			t.Errorf("%q: %v", text, err)
		}
	}
}
