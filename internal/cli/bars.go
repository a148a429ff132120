package cli

import (
	"fmt"
	"io"
	"time"

	"github.com/docker/go-units"
	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"

	"banger/api"
)

// watcher shows a person an operation's progress.
type watcher interface {
	event(api.Event)
	close() // nothing is shown afterwards
}

// silence shows nothing.
type silence struct{}

func (silence) event(api.Event) {}
func (silence) close()          {}

// bars watches an operation of many stages, such as the phases of a build or the layers of an
// image: on a terminal each has a bar of its own, which stays, and those that go on side by side are
// drawn so; elsewhere they are lines.
func (a *app) bars() watcher {
	if !isTerminal(a.Stderr) {
		return a.progress("")
	}
	begun := make(chan any)
	b := &bars{all: mpb.New(mpb.WithOutput(a.Stderr), mpb.WithWidth(barWidth), mpb.WithRenderDelay(begun), mpb.PopCompletedMode()), begun: map[string]*bar{}}
	b.timer = time.AfterFunc(patience, func() { close(begun) })
	return b
}

const (
	barWidth   = 32
	stageWidth = 34
)

type bars struct {
	all    *mpb.Progress
	timer  *time.Timer     // of the patience with which nothing is shown
	begun  map[string]*bar // by stage
	latest *bar
}

type bar struct {
	*mpb.Bar
	total int64 // 0: nothing is counted
}

func (b *bars) event(e api.Event) {
	if e.Warning != "" {
		fmt.Fprintf(b.all, "banger: warning: %s\n", shownLines(e.Warning))
	}
	if e.Stage == "" {
		return
	}
	full := e.Total > 0 && e.Done >= e.Total
	now := b.begun[e.Stage]
	if now != nil && now.Completed() {
		if full {
			return
		}
		now = nil // it begins again
	}
	if now == nil {
		if now = b.begin(e.Stage); now == nil {
			return
		}
	}
	if b.latest != nil && b.latest != now && b.latest.total == 0 {
		b.latest.SetTotal(-1, true) // what counts nothing is over when something else begins
	}
	b.latest, now.total = now, max(e.Total, 0)
	now.SetTotal(now.total, false)
	now.SetCurrent(max(e.Done, 0))
	if full {
		now.SetTotal(-1, true)
	}
}

// begin begins a bar, unless all are closed.
func (b *bars) begin(stage string) *bar {
	drawn, err := b.all.Add(0, mpb.BarFillerFunc(fillCounted),
		mpb.PrependDecorators(decor.Name(stageText(stage), decor.WC{W: stageWidth, C: decor.DindentRight})),
		mpb.AppendDecorators(decor.Any(amountText), decor.NewElapsed(decor.ET_STYLE_GO, time.Now(), decor.WC{W: 8})))
	if err != nil {
		return nil
	}
	b.begun[stage] = &bar{Bar: drawn}
	return b.begun[stage]
}

func (b *bars) close() {
	if b.timer.Stop() { // it was over soon
		b.all.Shutdown()
		return
	}
	for _, left := range b.begun {
		if left.total == 0 {
			left.SetTotal(-1, true)
		} else {
			left.Abort(false) // it stays as it is
		}
	}
	b.all.Wait()
}

// stageText names a stage in the room that there is for it.
func stageText(stage string) string {
	text := []rune(shown(stage))
	if len(text) >= stageWidth {
		text = append(text[:stageWidth-2], '…')
	}
	return string(text)
}

var filler = mpb.BarStyle().Lbound("[").Filler("=").Tip("").Padding(" ").Rbound("]").Build()

// fillCounted draws a bar where there is something to count.
func fillCounted(w io.Writer, s decor.Statistics) error {
	if s.Total <= 0 {
		return nil
	}
	return filler.Fill(w, s)
}

func amountText(s decor.Statistics) string {
	switch {
	case s.Total > 0:
		return fmt.Sprintf("%s/%s", units.BytesSize(float64(s.Current)), units.BytesSize(float64(s.Total)))
	case s.Current > 0:
		return units.BytesSize(float64(s.Current))
	}
	return ""
}
