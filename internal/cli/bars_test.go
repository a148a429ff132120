package cli

import (
	"strings"
	"testing"

	"banger/api"
)

func TestBars(t *testing.T) {
	show := func() (*pty, watcher) {
		p := openPTY(t)
		return p, (&app{Program: Program{Stderr: p.tty}}).bars()
	}
	text := func(p *pty) string {
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.text.String()
	}
	t.Run("a bar for each stage", func(t *testing.T) {
		p, w := show()
		w.event(api.Event{Stage: "asking"})
		p.await(t, "asking")
		w.event(api.Event{Stage: "pulling layer 1 of 2", Done: 1 << 20, Total: 1 << 20})
		p.await(t, "[==============================] 1MiB/1MiB")
		w.event(api.Event{Stage: "pulling layer 2 of 2\x1b", Done: 1 << 20, Total: 4 << 20})
		p.await(t, `pulling layer 2 of 2\x1b           [========                      ] 1MiB/4MiB`)
		w.event(api.Event{Warning: "the disk\x1b is slow"})
		p.await(t, `banger: warning: the disk\x1b is slow`)
		w.close()
		w.event(api.Event{Stage: "late"})
		if got := text(p); strings.Contains(got, "late") {
			t.Errorf("after its end: %q", got)
		}
	})
	t.Run("stages side by side", func(t *testing.T) {
		p, w := show()
		w.event(api.Event{Stage: "layer 1", Done: 1 << 20, Total: 4 << 20})
		w.event(api.Event{Stage: "layer 2", Done: 1 << 20, Total: 2 << 20})
		w.event(api.Event{Stage: "layer 1", Done: 3 << 20, Total: 4 << 20})
		p.await(t, "3MiB/4MiB")
		p.await(t, "1MiB/2MiB")
		w.event(api.Event{Stage: "layer 1", Done: 4 << 20, Total: 4 << 20})
		w.event(api.Event{Stage: "layer 1", Done: 4 << 20, Total: 4 << 20}) // and no bar more
		w.event(api.Event{Stage: "layer 2", Done: 3 << 19, Total: 2 << 20})
		p.await(t, "1.5MiB/2MiB")
		w.close()
		frames := strings.Split(text(p), "\x1b[J")
		if last := frames[len(frames)-1]; strings.Count(last, "layer 1") != 1 || strings.Count(last, "layer 2") != 1 {
			t.Errorf("at the end there is %q", last)
		}
	})
	t.Run("quick work is silent", func(t *testing.T) {
		p, w := show()
		w.event(api.Event{Stage: "quick", Done: 1, Total: 2})
		w.close()
		if got := text(p); strings.Contains(got, "quick") {
			t.Errorf("got %q", got)
		}
	})
	t.Run("a long name is cut", func(t *testing.T) {
		if got := []rune(stageText(strings.Repeat("ä", 200))); len(got) >= stageWidth {
			t.Errorf("got %d columns", len(got))
		}
	})
}
