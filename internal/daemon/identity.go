package daemon

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/renameio/v2"
	"golang.org/x/crypto/ssh"

	"banger/internal/config"
	"banger/internal/errs"
	"banger/internal/vm"
)

// identity is the key pair by which this banger's user is known to every guest.
type identity struct {
	file   string // of the private key
	public string // an authorized_keys line
}

// loadIdentity reads the key pair in dir, making it at the first time.
func loadIdentity(dir string) (identity, error) {
	id := identity{file: filepath.Join(dir, "id_ed25519")}
	raw, err := os.ReadFile(id.file)
	if errors.Is(err, fs.ErrNotExist) {
		raw, err = newIdentity(dir, id.file)
	}
	if err != nil {
		return identity{}, fmt.Errorf("the SSH key of this banger: %w", err)
	}
	signer, err := ssh.ParsePrivateKey(raw)
	if err != nil {
		return identity{}, errs.New(errs.Internal, "the SSH key %s can't be read", id.file).Because(err).Try("move it away; another is made")
	}
	id.public = strings.TrimSpace(string(ssh.MarshalAuthorizedKey(signer.PublicKey()))) + " banger"
	return id, nil
}

// handTo puts a copy of the private key where its owner, who can't look into the state
// directory, can read it, and nobody else.
func (id *identity) handTo(owner *config.Owner, dir string) error {
	fail := func(err error) error {
		return errs.New(errs.Unavailable, "give %s the SSH key of VMs", owner.Name).Because(err)
	}
	raw, err := os.ReadFile(id.file)
	if err != nil {
		return fail(err)
	}
	f, err := renameio.NewPendingFile(filepath.Join(dir, "id_ed25519"), renameio.WithPermissions(0o600))
	if err != nil {
		return fail(err)
	}
	defer f.Cleanup()
	_, err = f.Write(raw)
	if err == nil {
		err = errors.Join(f.Chown(owner.UID, owner.GID), f.CloseAtomicallyReplace())
	}
	if err != nil {
		return fail(err)
	}
	id.file = filepath.Join(dir, "id_ed25519")
	return nil
}

func newIdentity(dir, file string) ([]byte, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	private, _, err := vm.NewSSHKey()
	if err != nil {
		return nil, err
	}
	raw := []byte(private)
	return raw, renameio.WriteFile(file, raw, 0o600)
}
