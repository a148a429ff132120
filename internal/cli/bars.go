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

// bars watches an operation of many stages, such as the phases of a build or the layers of an
// image: on a terminal each has a bar of its own, which stays; elsewhere they are lines.
func (a *app) bars() watcher {
	if !isTerminal(a.Stderr) {
		return a.progress("")
	}
	begun := make(chan any)
	b := &bars{all: mpb.New(mpb.WithOutput(a.Stderr), mpb.WithWidth(barWidth), mpb.WithRenderDelay(begun), mpb.PopCompletedMode())}
	b.timer = time.AfterFunc(patience, func() { close(begun) })
	return b
}

const (
	barWidth   = 32
	stageWidth = 34
)

type bars struct {
	all    *mpb.Progress
	timer  *time.Timer // of the patience with which nothing is shown
	latest *mpb.Bar
	of     api.Event // what it shows
}

func (b *bars) event(e api.Event) {
	if e.Warning != "" {
		fmt.Fprintf(b.all, "banger: warning: %s\n", shownLines(e.Warning))
	}
	if e.Stage == "" {
		return
	}
	if b.latest == nil || e.Stage != b.of.Stage {
		b.finish()
		bar, err := b.all.Add(0, mpb.BarFillerFunc(fillCounted),
			mpb.PrependDecorators(decor.Name(stageText(e.Stage), decor.WC{W: stageWidth, C: decor.DindentRight})),
			mpb.AppendDecorators(decor.Any(amountText), decor.NewElapsed(decor.ET_STYLE_GO, time.Now(), decor.WC{W: 8})))
		if err != nil { // closed
			return
		}
		b.latest = bar
	}
	b.of = e
	b.latest.SetTotal(max(e.Total, 0), false)
	b.latest.SetCurrent(max(e.Done, 0))
}

// finish lets the latest bar be as it is: full, if its stage has come to its end.
func (b *bars) finish() {
	switch {
	case b.latest == nil:
	case b.of.Done >= b.of.Total:
		b.latest.SetTotal(-1, true)
	default:
		b.latest.Abort(false)
	}
}

func (b *bars) close() {
	if b.timer.Stop() { // it was over soon
		b.all.Shutdown()
		return
	}
	b.finish()
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
