package api

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/url"
)

// ErrorTrailer is the trailer of a streamed file in which an error comes that was met after
// its beginning had been sent: an Error in JSON.
const ErrorTrailer = "Banger-Error"

// Runtime tells where the runtime bundle is.
func (c *Client) Runtime(ctx context.Context) (r Runtime, err error) {
	return r, c.call(ctx, "GET", "/v1/runtime", nil, &r)
}

// BuildRuntime makes what the runtime bundle lacks.
func (c *Client) BuildRuntime(ctx context.Context, req BuildRuntime, progress func(Event)) error {
	_, err := c.operate(ctx, "POST", "/v1/runtime/build", req, progress)
	return err
}

// FetchRuntime puts a packed bundle in the place of the one there is.
func (c *Client) FetchRuntime(ctx context.Context, req FetchRuntime, progress func(Event)) error {
	_, err := c.operate(ctx, "POST", "/v1/runtime/fetch", req, progress)
	return err
}

// InstallRuntime puts a copy of a bundle in the place of the one there is.
func (c *Client) InstallRuntime(ctx context.Context, req InstallRuntime, progress func(Event)) error {
	_, err := c.operate(ctx, "POST", "/v1/runtime/install", req, progress)
	return err
}

// RollBackRuntime puts the previous bundle in the place of the one there is.
func (c *Client) RollBackRuntime(ctx context.Context, progress func(Event)) error {
	_, err := c.operate(ctx, "POST", "/v1/runtime/rollback", nil, progress)
	return err
}

// VerifyRuntime reads the bundle's files and calls yield with what it finds of each.
func (c *Client) VerifyRuntime(ctx context.Context, yield func(Verdict) bool) error {
	return lines(ctx, c, "/v1/runtime/verify", yield)
}

// PackRuntime writes the bundle as an archive, or of it what is named in only.
func (c *Client) PackRuntime(ctx context.Context, only []string, w io.Writer) error {
	resp, err := c.request(ctx, "GET", "/v1/runtime/archive?"+url.Values{"only": only}.Encode(), nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(w, resp.Body); err != nil {
		return fmt.Errorf("pack the bundle: %w", gone(err))
	}
	var e Error
	if text := resp.Trailer.Get(ErrorTrailer); text != "" {
		if err := json.Unmarshal([]byte(text), &e); err != nil {
			return err
		}
		return &e
	}
	return nil
}
