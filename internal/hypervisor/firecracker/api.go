package firecracker

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
)

// maxAnswer bounds an answer of Firecracker's, in bytes.
const maxAnswer = 1 << 20

// apiClient talks to one Firecracker over its Unix socket. Firecracker takes one request at a
// time and answers each at once.
type apiClient struct{ http *http.Client }

// newClient makes a client that connects with dial.
func newClient(dial func(context.Context) (net.Conn, error)) *apiClient {
	return &apiClient{&http.Client{Transport: &http.Transport{
		DialContext:     func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) },
		MaxConnsPerHost: 1,
	}}}
}

// refusal is an answer that says no.
type refusal struct {
	call   call
	status int
	fault  string // what Firecracker says of it
}

func (r *refusal) Error() string {
	if r.fault == "" {
		return fmt.Sprintf("%s %s was answered with status %d", r.call.method, r.call.path, r.status)
	}
	return fmt.Sprintf("%s %s: %s", r.call.method, r.call.path, r.fault)
}

// call is one request: a change if it has a body.
type call struct {
	method, path string
	body         any
}

func get(path string) call             { return call{method: http.MethodGet, path: path} }
func put(path string, body any) call   { return call{http.MethodPut, path, body} }
func patch(path string, body any) call { return call{http.MethodPatch, path, body} }

// do carries out a call and decodes the answer into result, unless that is nil. Its error is
// a *refusal if Firecracker said no.
func (c *apiClient) do(ctx context.Context, l call, result any) error {
	var body io.Reader
	if l.body != nil {
		b, err := json.Marshal(l.body)
		if err != nil {
			return fmt.Errorf("%s: %w", l.path, err)
		}
		body = bytes.NewReader(b)
	}
	// The host's name goes nowhere: the connection is that of the socket.
	req, err := http.NewRequestWithContext(ctx, l.method, "http://firecracker"+l.path, body)
	if err != nil {
		return err
	}
	req.Header.Set("Accept", "application/json")
	req.Header.Set("Content-Type", "application/json")
	resp, err := c.http.Do(req)
	if err != nil {
		return fmt.Errorf("%s %s: %w", l.method, l.path, unwrapURL(err))
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	switch {
	case err != nil:
		return fmt.Errorf("%s %s: the answer broke off: %w", l.method, l.path, err)
	case len(answer) > maxAnswer:
		return fmt.Errorf("%s %s: the answer is longer than %d bytes", l.method, l.path, maxAnswer)
	case resp.StatusCode >= http.StatusMultipleChoices:
		var said struct {
			Fault string `json:"fault_message"`
		}
		_ = json.Unmarshal(answer, &said) // without one the status must do
		return &refusal{l, resp.StatusCode, printable(said.Fault)}
	case result == nil:
		return nil
	}
	if err := json.Unmarshal(answer, result); err != nil {
		return fmt.Errorf("%s %s: the answer makes no sense: %w", l.method, l.path, err)
	}
	return nil
}

// unwrapURL takes off what the HTTP library wraps around an error: a URL that means nothing.
func unwrapURL(err error) error {
	for {
		inner := errors.Unwrap(err)
		if _, ok := err.(interface{ Timeout() bool }); !ok || inner == nil {
			return err
		}
		err = inner
	}
}

// close hangs up.
func (c *apiClient) close() { c.http.CloseIdleConnections() }

// running is the state of a machine that is not paused.
const running = "Running"

// instance is what GET / tells.
type instance struct {
	ID      string `json:"id"`
	State   string `json:"state"` // "Not started", "Paused" or running
	Version string `json:"vmm_version"`
}

func (c *apiClient) instance(ctx context.Context) (i instance, err error) {
	return i, c.do(ctx, get("/"), &i)
}
