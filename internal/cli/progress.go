package cli

import (
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/docker/go-units"

	"banger/api"
)

// patience is how long work may take before banger says what it is doing.
const patience = time.Second

// redraw is the shortest time between two drawings of the line on a terminal.
const redraw = 100 * time.Millisecond

// progress tells a person what an operation is doing, if it takes longer than patience. On
// a terminal that is one line, drawn anew; elsewhere a line for each stage that lasts.
type progress struct {
	w     io.Writer
	live  bool   // w is a terminal that is all ours
	label string // put before each stage, or empty

	mu     sync.Mutex
	timer  *time.Timer
	start  time.Time // of the operation
	latest api.Event
	drawn  time.Time            // when the line was last drawn; zero if nothing is on it
	begun  map[string]time.Time // of stages, of which several may go on side by side; zero: it has its plain line
}

// progress begins to watch an operation. Several that run side by side have labels and
// share the terminal by plain lines.
func (a *app) progress(label string) *progress {
	p := &progress{w: a.Stderr, live: label == "" && isTerminal(a.Stderr), label: label, start: time.Now(), begun: map[string]time.Time{}}
	p.timer = time.AfterFunc(patience, p.tick)
	return p
}

// event takes a step of the operation. It is made to be given to the API's client.
func (p *progress) event(e api.Event) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if e.Warning != "" {
		p.erase()
		fmt.Fprintf(p.w, "banger: warning: %s\n", shownLines(e.Warning))
	}
	if e.Stage == "" {
		return
	}
	newStage := e.Stage != p.latest.Stage
	p.latest = e
	switch {
	case p.live:
		if !p.drawn.IsZero() && time.Since(p.drawn) >= redraw {
			p.draw()
		}
	case newStage:
		if begun, again := p.begun[e.Stage]; !again {
			p.begun[e.Stage] = time.Now()
		} else if time.Since(begun) >= patience {
			p.tell()
		}
		p.timer.Reset(patience)
	}
}

// tell writes the plain line of the latest stage, once.
func (p *progress) tell() {
	if !p.begun[p.latest.Stage].IsZero() {
		p.begun[p.latest.Stage] = time.Time{}
		fmt.Fprintf(p.w, "banger: %s%s…\n", p.prefix(), shown(p.latest.Stage))
	}
}

// bytes takes the progress of a copy.
func (p *progress) bytes(done, total int64) {
	p.event(api.Event{Stage: "copying", Done: done, Total: total})
}

// tick is called once the operation or its stage has lasted, and then, on a terminal, for
// each further second.
func (p *progress) tick() {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.timer == nil || p.latest.Stage == "":
		return
	case p.live:
		p.draw()
		p.timer.Reset(time.Second)
	default:
		p.tell()
	}
}

func (p *progress) prefix() string {
	if p.label == "" {
		return ""
	}
	return shown(p.label) + ": "
}

// draw draws the line. Its width stays below any terminal's in practice; wrapping is
// switched off meanwhile, so that a narrow one cuts it.
func (p *progress) draw() {
	p.drawn = time.Now()
	fmt.Fprintf(p.w, "\x1b[?7l\r%s%s %s\x1b[K\x1b[?7h", shown(p.latest.Stage), amount(p.latest),
		time.Since(p.start).Truncate(time.Second))
}

// amount tells how far a stage is: a bar and bytes where it counts them.
func amount(e api.Event) string {
	const width = 24
	switch {
	case e.Total > 0:
		full := int(width * float64(min(max(e.Done, 0), e.Total)) / float64(e.Total))
		bar := fmt.Sprintf("%-*s", width, "========================"[:full])
		return fmt.Sprintf(" [%s] %s/%s", bar, units.BytesSize(float64(e.Done)), units.BytesSize(float64(e.Total)))
	case e.Done > 0:
		return " " + units.BytesSize(float64(e.Done))
	}
	return ""
}

func (p *progress) erase() {
	if !p.drawn.IsZero() {
		fmt.Fprint(p.w, "\r\x1b[K")
	}
}

// close takes the line away. Nothing is written afterwards.
func (p *progress) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.timer != nil {
		p.timer.Stop()
		p.timer = nil
		p.erase()
	}
}
