package cli

import (
	"context"
	"sync"

	"banger/api"
)

// each does work on every reference, side by side, each one once however often it is
// given. The name of each VM that is done goes to standard output as it is; each failure
// goes to standard error. It fails if any did, after all have ended.
func (a *app) each(ctx context.Context, refs []string, work func(ref string, progress func(api.Event)) (string, error)) error {
	refs = unique(refs)
	var mu sync.Mutex
	failed := false
	var wg sync.WaitGroup
	for _, ref := range refs {
		wg.Go(func() {
			label := ""
			if len(refs) > 1 {
				label = ref
			}
			p := a.progress(label)
			name, err := work(ref, p.event)
			p.close()
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				failed = true
				if ctx.Err() == nil {
					a.report(err)
				}
				return
			}
			a.print("%s\n", shown(name))
		})
	}
	wg.Wait()
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case failed:
		return exitCode(exitFailure)
	}
	return nil
}

func unique(list []string) []string {
	seen := make(map[string]bool, len(list))
	var once []string
	for _, s := range list {
		if !seen[s] {
			seen[s] = true
			once = append(once, s)
		}
	}
	return once
}
