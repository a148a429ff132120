package api

import (
	"context"
	"encoding/json"
	"fmt"
	"time"
)

// cancelGrace bounds how long a cancelled operation may take to roll back before the
// client stops listening; the daemon goes on with it.
const cancelGrace = 60 * time.Second

// beginGrace bounds how long a call that starts an operation is waited for once its caller
// has given up: were it dropped at once, nobody would know of the operation to cancel it.
const beginGrace = 5 * time.Second

func (c *Client) begin(ctx context.Context, method, path string, body any) (op Operation, err error) {
	if err := ctx.Err(); err != nil {
		return op, err
	}
	begin, drop := context.WithCancel(context.WithoutCancel(ctx))
	defer drop()
	defer context.AfterFunc(ctx, func() {
		defer time.AfterFunc(beginGrace, drop).Stop()
		<-begin.Done()
	})()
	return op, c.call(begin, method, path, body, &op)
}

// operate starts an operation and follows it to its end.
func (c *Client) operate(ctx context.Context, method, path string, body any, progress func(Event)) (VM, error) {
	op, err := c.begin(ctx, method, path, body)
	if err != nil {
		return VM{}, err
	}
	end, err := c.follow(ctx, op, progress)
	vm := VM{ID: op.VM, Name: op.Name} // all that is left to tell of one that is gone
	if end.VM != nil {
		vm = *end.VM
	}
	return vm, err
}

// follow follows an operation to its end, and returns its last event. Ending ctx cancels it.
func (c *Client) follow(ctx context.Context, op Operation, progress func(Event)) (Event, error) {
	follow, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	defer context.AfterFunc(ctx, func() {
		cancel, done := context.WithTimeout(context.WithoutCancel(ctx), cancelGrace)
		defer done()
		// Whether it was still there to cancel shows in the events below.
		_ = c.call(cancel, "DELETE", "/v1/operations/"+op.ID, nil, nil)
		select {
		case <-follow.Done():
		case <-cancel.Done():
			stop()
		}
	})()
	resp, err := c.request(follow, "GET", "/v1/operations/"+op.ID+"/events", nil)
	if err != nil {
		return Event{}, err
	}
	defer resp.Body.Close()
	for dec := json.NewDecoder(resp.Body); ; {
		var e Event
		if err := dec.Decode(&e); err != nil {
			return Event{}, fmt.Errorf("the daemon went away during %q: %w", op.Kind, err)
		}
		if !e.Finished {
			if progress != nil {
				progress(e)
			}
			continue
		}
		if e.Error != nil {
			return e, e.Error
		}
		return e, nil
	}
}
