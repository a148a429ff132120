package api

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
)

// PullImage asks to make an image of a container image in a registry.
type PullImage struct {
	Reference   string               `json:"reference" doc:"[HOST/]NAME[:TAG][@DIGEST]; the host and tag that are left out are Docker's"`
	Name        string               `json:"name,omitempty" doc:"That it gets; the reference's if empty"`
	Platform    string               `json:"platform,omitempty" doc:"os/architecture; linux/amd64 if empty"`
	SizeBytes   *int64               `json:"size_bytes,omitempty" doc:"Of the filesystem; what fits if absent"`
	Credentials *RegistryCredentials `json:"credentials,omitempty" doc:"For the registry; they are not kept"`
}

// RegistryCredentials are a user's of a registry, as the files of container tools have them.
type RegistryCredentials struct {
	Username      string `json:"username,omitempty"`
	Password      string `json:"password,omitempty"`
	Auth          string `json:"auth,omitempty"`
	IdentityToken string `json:"identity_token,omitempty"`
	RegistryToken string `json:"registry_token,omitempty"`
}

// ImportImage makes an image of a file or directory of the host's.
func (c *Client) ImportImage(ctx context.Context, req ImportImage, progress func(Event)) error {
	_, err := c.operate(ctx, "POST", "/v1/images/import", req, progress)
	return err
}

// errorTrailer is where an answer that has begun already tells what went wrong after all.
const errorTrailer = "Banger-Error"

// ExportImage writes an image's files to w: as a tar archive of the root filesystem, or for the
// format "oci" as an archive of a container image.
func (c *Client) ExportImage(ctx context.Context, name, format string, w io.Writer) error {
	resp, err := c.request(ctx, "GET", "/v1/images/"+segment(name)+"/export?format="+url.QueryEscape(format), nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(w, resp.Body); err != nil {
		return gone(err)
	}
	if b := resp.Trailer.Get(errorTrailer); b != "" {
		var e Error
		if err := json.Unmarshal([]byte(b), &e); err != nil {
			return err
		}
		return &e
	}
	return nil
}

// PullImage makes an image of one in a registry, and returns its name.
func (c *Client) PullImage(ctx context.Context, req PullImage, progress func(Event)) (name string, err error) {
	op, err := c.begin(ctx, "POST", "/v1/images/pull", req)
	if err != nil {
		return "", err
	}
	end, err := c.follow(ctx, op, progress)
	return end.Image, err
}

// ImportImageFrom makes an image of what r gives.
func (c *Client) ImportImageFrom(ctx context.Context, req ImportImage, r io.Reader, progress func(Event)) error {
	b, err := json.Marshal(req)
	if err != nil {
		return err
	}
	send, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	post, err := http.NewRequestWithContext(send, "POST", "http://banger/v1/images/import-stream?request="+url.QueryEscape(string(b)), io.NopCloser(r))
	if err != nil {
		return err
	}
	// The answer, the operation, comes at once and stays open; what r gives is sent for as long
	// as that reads it.
	resp, err := c.do(post)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode >= 400 {
		return readError(resp)
	}
	var op Operation
	if err := json.NewDecoder(resp.Body).Decode(&op); err != nil {
		return gone(err)
	}
	_, err = c.follow(ctx, op, progress)
	return err
}
