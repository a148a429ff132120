// Package embedded carries the guest agent's program inside the daemon's. It owns the
// bytes only: whoever builds an initramfs decides where they go.
package embedded

import (
	"embed"
	"errors"
	"io/fs"

	"banger/internal/errs"
)

// bin holds banger-guest, put there by the build before the daemon is compiled.
//
//go:embed all:bin
var bin embed.FS

// Agent returns the static Linux program banger-guest. It fails with errs.Unavailable
// where this binary was compiled without it.
func Agent() ([]byte, error) {
	agent, err := bin.ReadFile("bin/banger-guest")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errs.New(errs.Unavailable, "this bangerd was built without the guest agent").Try("run: make build")
	}
	return agent, err
}
