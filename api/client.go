package api

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"banger/internal/unixsock"
)

// ErrNoDaemon is returned when no daemon answers on the socket.
var ErrNoDaemon = errors.New("no bangerd answers")

// ErrGone is returned when the daemon ended before it answered. What it was asked for may
// have been done, except for the opening of streams, which can be tried again.
var ErrGone = errors.New("the daemon ended before it answered")

// closedIdle is what net/http says, with an error that it keeps to itself, where the other end
// hung up before the request was on its way.
const closedIdle = "http: server closed idle connection"

// gone makes ErrGone of what reading from a closed connection gives.
func gone(err error) error {
	if err != nil && strings.Contains(err.Error(), closedIdle) {
		return ErrGone
	}
	for _, closed := range []error{io.EOF, io.ErrUnexpectedEOF, syscall.ECONNRESET, syscall.EPIPE} {
		if errors.Is(err, closed) {
			return ErrGone
		}
	}
	return err
}

// Client talks to the daemon on its Unix socket. It is safe for concurrent use.
type Client struct {
	socket string
	http   *http.Client
}

// New returns a client of the daemon that listens on the Unix socket at path. It does not
// connect yet.
func New(path string) *Client {
	c := &Client{socket: path}
	c.http = &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return c.dial(ctx) },
	}}
	return c
}

func (c *Client) dial(ctx context.Context) (net.Conn, error) {
	if err := trusted(c.socket); err != nil {
		return nil, err
	}
	var conn net.Conn
	err := unixsock.WithAddress(c.socket, func(address string) (err error) {
		conn, err = new(net.Dialer).DialContext(ctx, "unix", address)
		return err
	})
	if errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%w on %s", ErrNoDaemon, c.socket)
	}
	return conn, err
}

// trusted refuses a socket that another user could have put in place of the daemon's:
// whoever serves it sees what we send and answers what they like.
func trusted(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%w on %s", ErrNoDaemon, path)
	}
	if err != nil {
		return err
	}
	if info.Mode()&os.ModeSocket == 0 {
		return &Error{Code: "invalid", Message: path + " is not a socket", Hint: "move it away, or set BANGER_SOCKET to another path"}
	}
	owner := info.Sys().(*syscall.Stat_t).Uid
	if owner != 0 && int(owner) != os.Geteuid() && !placedByRoot(path) {
		return &Error{Code: "invalid",
			Message: fmt.Sprintf("the socket %s belongs to user %d, neither you nor root", path, owner),
			Hint:    "set BANGER_SOCKET or BANGER_STATE_DIR to a place of your own"}
	}
	return nil
}

// placedByRoot tells whether nobody but root can have put a file where it is: the socket of
// root's daemon may belong to a user whom that serves beside root.
func placedByRoot(path string) bool {
	dir, err := os.Stat(filepath.Dir(path))
	const others = 0o022 // may write
	return err == nil && dir.Sys().(*syscall.Stat_t).Uid == 0 && dir.Mode()&others == 0
}

func (c *Client) request(ctx context.Context, method, path string, body any) (*http.Response, error) {
	if err := unnamed(path); err != nil {
		return nil, err
	}
	var r io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return nil, err
		}
		r = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://banger"+path, r)
	if err != nil {
		return nil, err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode >= 400 {
		defer resp.Body.Close()
		return nil, readError(resp)
	}
	return resp, nil
}

func (c *Client) do(req *http.Request) (*http.Response, error) {
	resp, err := c.http.Do(req)
	var u *url.Error // its text repeats the method and an address that is not one
	if errors.As(err, &u) {
		err = u.Err
	}
	return resp, gone(err)
}

func readError(resp *http.Response) error {
	var e Error
	b, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil || json.Unmarshal(b, &e) != nil || e.Message == "" {
		if resp.StatusCode == http.StatusNotFound || resp.StatusCode == http.StatusMethodNotAllowed {
			return unknownRequest(resp)
		}
		return &Error{Code: "internal", Message: "the daemon answered " + resp.Status}
	}
	return &e
}

// VersionHeader is in every answer of a daemon, and tells its version.
const VersionHeader = "Banger-Version"

// unknownRequest is the error where a daemon of another version has no such call.
func unknownRequest(resp *http.Response) error {
	return &Error{Code: "unsupported",
		Message: fmt.Sprintf("the daemon, version %s, does not know this request", cmp.Or(resp.Header.Get(VersionHeader), "unknown")),
		Hint:    "it is of another version than this program: upgrade the older of them; `banger daemon stop` ends the daemon, the next command starts the one installed, and VMs run on"}
}

func (c *Client) call(ctx context.Context, method, path string, body, result any) error {
	resp, err := c.request(ctx, method, path, body)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if result == nil {
		return nil
	}
	return json.NewDecoder(resp.Body).Decode(result)
}

// Ping returns nil if a daemon answers, ErrNoDaemon if nobody listens on the socket, and
// ErrGone if whoever did hung up: that a socket takes connections says little, for one of a
// daemon that was killed does so until each process that it was just starting has let go of it.
func (c *Client) Ping(ctx context.Context) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodOptions, "http://banger", nil)
	if err != nil {
		return err
	}
	req.URL.Opaque = "*" // no resource; HTTP servers answer by themselves
	resp, err := c.do(req)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

// Close lets go of connections that are kept for further calls.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Daemon describes the daemon.
func (c *Client) Daemon(ctx context.Context) (d Daemon, err error) {
	return d, c.call(ctx, "GET", "/v1/daemon", nil, &d)
}

// StopDaemon asks the daemon to end. VMs run on.
func (c *Client) StopDaemon(ctx context.Context) error {
	return c.call(ctx, "POST", "/v1/daemon/stop", nil, nil)
}

// VMs lists all VMs, by name.
func (c *Client) VMs(ctx context.Context) (vms []VM, err error) {
	return vms, c.call(ctx, "GET", "/v1/vms", nil, &vms)
}

// VMsUp lists the VMs that are not stopped, by name.
func (c *Client) VMsUp(ctx context.Context) (vms []VM, err error) {
	return vms, c.call(ctx, "GET", "/v1/vms?up=true", nil, &vms)
}

// VM returns the VM that ref names: a name, an id, or a unique prefix of either.
func (c *Client) VM(ctx context.Context, ref string) (vm VM, err error) {
	return vm, c.call(ctx, "GET", vmPath(ref, ""), nil, &vm)
}

// CreateVM makes a VM, and starts it if so asked. It returns when that is done; each step
// is told to progress, which may be nil. Ending ctx cancels the operation, which then
// leaves nothing behind.
func (c *Client) CreateVM(ctx context.Context, req CreateVM, progress func(Event)) (VM, error) {
	return c.operate(ctx, "POST", "/v1/vms", req, progress)
}

// StartVM starts a stopped VM.
func (c *Client) StartVM(ctx context.Context, ref string, req StartVM, progress func(Event)) (VM, error) {
	return c.operate(ctx, "POST", vmPath(ref, "/start"), req, progress)
}

// StopVM stops a running VM; its disk stays.
func (c *Client) StopVM(ctx context.Context, ref string, req StopVM, progress func(Event)) (VM, error) {
	return c.operate(ctx, "POST", vmPath(ref, "/stop"), req, progress)
}

// KillVM ends a running VM at once, as pulling its plug would; its disk stays.
func (c *Client) KillVM(ctx context.Context, ref string, progress func(Event)) (VM, error) {
	now := 0
	return c.StopVM(ctx, ref, StopVM{TimeoutSeconds: &now}, progress)
}

// RestartVM stops a VM, if it runs, and starts it.
func (c *Client) RestartVM(ctx context.Context, ref string, req RestartVM, progress func(Event)) (VM, error) {
	return c.operate(ctx, "POST", vmPath(ref, "/restart"), req, progress)
}

// PauseVM halts a running VM's CPUs.
func (c *Client) PauseVM(ctx context.Context, ref string, progress func(Event)) (VM, error) {
	return c.operate(ctx, "POST", vmPath(ref, "/pause"), nil, progress)
}

// ResumeVM lets a paused VM go on.
func (c *Client) ResumeVM(ctx context.Context, ref string, progress func(Event)) (VM, error) {
	return c.operate(ctx, "POST", vmPath(ref, "/resume"), nil, progress)
}

// RemoveVM deletes a VM with its disk. A running one is refused unless force is set. Of what it
// returns only the id and the name are set.
func (c *Client) RemoveVM(ctx context.Context, ref string, force bool, progress func(Event)) (VM, error) {
	return c.operate(ctx, "DELETE", vmPath(ref, "?force="+strconv.FormatBool(force)), nil, progress)
}

// Logs reads the VM's console log from its oldest byte; with follow it goes on as more
// comes, until the VM's machine ends.
func (c *Client) Logs(ctx context.Context, ref string, follow bool) (io.ReadCloser, error) {
	resp, err := c.request(ctx, "GET", vmPath(ref, "/logs?follow="+strconv.FormatBool(follow)), nil)
	if err != nil {
		return nil, err
	}
	return resp.Body, nil
}

// Images lists the images.
func (c *Client) Images(ctx context.Context) (images []Image, err error) {
	return images, c.call(ctx, "GET", "/v1/images", nil, &images)
}

// Image returns one image with its packages.
func (c *Client) Image(ctx context.Context, name string) (i Image, err error) {
	return i, c.call(ctx, "GET", "/v1/images/"+segment(name), nil, &i)
}

// BuildImage builds an image from a manifest.
func (c *Client) BuildImage(ctx context.Context, req BuildImage, progress func(Event)) error {
	_, err := c.operate(ctx, "POST", "/v1/images/build", req, progress)
	return err
}

// CheckImage tells which packages of an image the mirror has in newer versions. That also
// makes the image stale, or not any more.
func (c *Client) CheckImage(ctx context.Context, ref string) (newer []NewerPackage, err error) {
	return newer, c.call(ctx, "POST", "/v1/images/"+segment(ref)+"/check", nil, &newer)
}

// CommitVM keeps the disk of a VM as an image.
func (c *Client) CommitVM(ctx context.Context, ref string, req CommitVM, progress func(Event)) error {
	_, err := c.operate(ctx, "POST", vmPath(ref, "/commit"), req, progress)
	return err
}

// TagImage lets a name mean an image.
func (c *Client) TagImage(ctx context.Context, req TagImage) error {
	return c.call(ctx, "POST", "/v1/images/tag", req, nil)
}

// PruneImages removes the images that no name means and no VM uses and, with all, what
// builds and pulls have kept to be quicker the next time. With dry it only lists them.
func (c *Client) PruneImages(ctx context.Context, all, dry bool) (pruned PrunedImages, err error) {
	return pruned, c.call(ctx, "POST", fmt.Sprintf("/v1/images/prune?all=%t&dry=%t", all, dry), nil, &pruned)
}

// RemoveImage takes a name of an image away, and with the last one the image, which no VM
// may use. With a digest it takes all names away.
func (c *Client) RemoveImage(ctx context.Context, name string) error {
	return c.call(ctx, "DELETE", "/v1/images/"+segment(name), nil, nil)
}

// Kernels lists the kernels.
func (c *Client) Kernels(ctx context.Context) (ks []Kernel, err error) {
	return ks, c.call(ctx, "GET", "/v1/kernels", nil, &ks)
}

// ImportKernel takes a kernel of the host's.
func (c *Client) ImportKernel(ctx context.Context, req ImportKernel, progress func(Event)) error {
	_, err := c.operate(ctx, "POST", "/v1/kernels", req, progress)
	return err
}

// RemoveKernel deletes an imported kernel that no VM uses.
func (c *Client) RemoveKernel(ctx context.Context, name string) error {
	return c.call(ctx, "DELETE", "/v1/kernels/"+segment(name), nil, nil)
}

// Doctor examines the host.
func (c *Client) Doctor(ctx context.Context) (checks []Check, err error) {
	return checks, c.call(ctx, "GET", "/v1/doctor", nil, &checks)
}

// SSH tells what an SSH client needs.
func (c *Client) SSH(ctx context.Context) (s SSH, err error) {
	return s, c.call(ctx, "GET", "/v1/ssh", nil, &s)
}

// Lease opens a lease: VMs created with its id are removed when the lease is closed or
// this process ends, however it ends.
func (c *Client) Lease(ctx context.Context) (id string, lease io.Closer, err error) {
	resp, err := c.request(ctx, "GET", "/v1/lease", nil)
	if err != nil {
		return "", nil, err
	}
	var l struct{ ID string }
	if err := json.NewDecoder(resp.Body).Decode(&l); err != nil {
		resp.Body.Close()
		return "", nil, fmt.Errorf("open lease: %w", err)
	}
	return l.ID, resp.Body, nil
}

// vmPath is the path of a VM's resource.
func vmPath(ref, rest string) string { return "/v1/vms/" + segment(ref) + rest }

// segment makes one segment of a path of whatever name holds. The names of the directory
// itself and its parent would be resolved on the way if their dots were not escaped.
func segment(name string) string {
	switch name {
	case ".", "..":
		return strings.ReplaceAll(name, ".", "%2E")
	}
	return url.PathEscape(name)
}

// unnamed refuses a path in which a segment is empty: it would be another resource's.
func unnamed(path string) error {
	path, _, _ = strings.Cut(path, "?")
	if strings.HasSuffix(path, "/") || strings.Contains(path, "//") {
		return &Error{Code: "invalid", Message: "an empty name names nothing"}
	}
	return nil
}
