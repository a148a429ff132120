package vm

import "context"

// eventPage is how many events are read from the store at once.
const eventPage = 256

// Events calls yield with what happened after the event of this number, oldest first. With
// follow it waits for more until ctx ends; otherwise it ends with the last there is. It also
// ends when yield returns false. A negative number stands for the last event there is now.
func (m *Manager) Events(ctx context.Context, after int64, follow bool, yield func(Event) bool) error {
	if after < 0 {
		var err error
		if after, err = m.Store.LastEvent(ctx); err != nil {
			return err
		}
	}
	for {
		changed := m.Store.Changed() // taken before the look, so that nothing is missed
		page, err := m.Store.Events(ctx, after, eventPage)
		if err != nil {
			return err
		}
		for _, e := range page {
			after = e.Seq
			if !yield(e) {
				return nil
			}
		}
		switch {
		case len(page) == eventPage:
			continue
		case !follow:
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil
		}
	}
}
