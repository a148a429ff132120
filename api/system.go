package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
)

// Events calls yield with what happened to VMs after the event with this number, oldest
// first; -1 stands for the last event there is. With follow it goes on until ctx ends, which
// is no error. It ends early when yield returns false.
func (c *Client) Events(ctx context.Context, after int64, follow bool, yield func(Transition) bool) error {
	path := "/v1/events?after=" + strconv.FormatInt(after, 10) + "&follow=" + strconv.FormatBool(follow)
	enough := false
	err := lines(ctx, c, path, func(t Transition) bool {
		enough = !yield(t)
		return !enough
	})
	switch {
	case ctx.Err() != nil:
		return nil
	case err == nil && follow && !enough:
		return ErrGone
	}
	return err
}

// lines calls yield with each JSON line of an answer, until it ends or yield returns false.
func lines[T any](ctx context.Context, c *Client, path string, yield func(T) bool) error {
	resp, err := c.request(ctx, "GET", path, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	for dec := json.NewDecoder(resp.Body); ; {
		var v T
		err := dec.Decode(&v)
		switch {
		case errors.Is(err, io.EOF) || ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			return fmt.Errorf("read the daemon's answer: %w", gone(err))
		case !yield(v):
			return nil
		}
	}
}

// Stats tells what a running VM takes and does now.
func (c *Client) Stats(ctx context.Context, ref string) (s Stats, err error) {
	return s, c.call(ctx, "GET", vmPath(ref, "/stats"), nil, &s)
}

// Census lists what exists on the host for VMs; that which should not, or is missing, has a
// problem.
func (c *Client) Census(ctx context.Context) (found []Finding, err error) {
	return found, c.call(ctx, "GET", "/v1/system/census", nil, &found)
}

// Sweep removes what the census finds that is proven banger's and that nothing explains,
// and returns what it has removed.
func (c *Client) Sweep(ctx context.Context) (gone []Finding, err error) {
	return gone, c.call(ctx, "POST", "/v1/system/sweep", nil, &gone)
}

// Verify reads the files that VMs depend on and calls yield with what it finds of each.
func (c *Client) Verify(ctx context.Context, yield func(Verdict) bool) error {
	return lines(ctx, c, "/v1/system/verify", yield)
}

// Prune removes files that nothing needs any more, and returns them; with dry it only does
// the latter.
func (c *Client) Prune(ctx context.Context, dry bool) (files []File, err error) {
	return files, c.call(ctx, "POST", "/v1/prune?dry="+strconv.FormatBool(dry), nil, &files)
}

// DNS tells how names are served and made known.
func (c *Client) DNS(ctx context.Context) (d DNS, err error) {
	return d, c.call(ctx, "GET", "/v1/dns", nil, &d)
}

// DNSRecords lists the names that there are now.
func (c *Client) DNSRecords(ctx context.Context) (all []DNSRecord, err error) {
	return all, c.call(ctx, "GET", "/v1/dns/records", nil, &all)
}
