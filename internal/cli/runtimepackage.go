package cli

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"aead.dev/minisign"
	"github.com/google/renameio/v2"
	"github.com/pelletier/go-toml/v2"
	"github.com/spf13/cobra"

	"banger/api"
	"banger/internal/errs"
)

// keyPassword is the environment variable with the password of a signing key.
const keyPassword = "BANGER_KEY_PASSWORD"

// readManifest takes from the [archive] of a bundle's description what req does not say.
func readManifest(path string, req *api.FetchRuntime) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return errs.New(errs.Invalid, "read the manifest").Because(err)
	}
	var m struct {
		Archive *struct {
			URL    string `toml:"url"`
			SHA256 string `toml:"sha256"`
			Bytes  int64  `toml:"bytes"`
		} `toml:"archive"`
	}
	if err := toml.Unmarshal(b, &m); err != nil {
		return errs.New(errs.Invalid, "read the manifest %s", path).Because(err)
	}
	if m.Archive == nil {
		return errs.New(errs.Invalid, "the manifest %s has no [archive]", path).Try("write url, sha256 and bytes of a packed bundle there")
	}
	if req.URL == "" {
		req.URL = m.Archive.URL
	}
	if req.SHA256 == "" {
		req.SHA256 = m.Archive.SHA256
	}
	req.Bytes = m.Archive.Bytes
	return nil
}

func (a *app) runtimePackageCommand() *cobra.Command {
	var to, key string
	cmd := &cobra.Command{
		Use:   "package [NAME…]",
		Short: "Pack the runtime bundle, or the parts named, for other machines",
		Long: `Write the runtime bundle as a tar.zst, the same bytes for the same bundle, and beside it its
SHA-256 (.sha256) and, given a secret key of minisign, its signature (.minisig). What must not
leave this host - private keys, sockets, state, its identity - is refused and named.
The password of the key is read from $` + keyPassword + `, or asked for.`,
		Example: `  banger runtime package -o banger-runtime.tar.zst
  banger runtime package -o banger-runtime.tar.zst --sign minisign.key`,
		Args: args(0, -1, ""),
		RunE: func(cmd *cobra.Command, names []string) error {
			if to == "" {
				return badUsage("package needs -o FILE")
			}
			var sign *minisign.PrivateKey
			if key != "" {
				k, err := a.signingKey(key)
				if err != nil {
					return err
				}
				sign = &k
			}
			client, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			return a.pack(cmd.Context(), client, unique(names), to, sign)
		},
	}
	cmd.Flags().StringVarP(&to, "output", "o", "", "the archive to write, a `FILE`")
	cmd.Flags().StringVar(&key, "sign", "", "sign it with the secret key in this `FILE`")
	return cmd
}

// signingKey reads a secret key of minisign's.
func (a *app) signingKey(path string) (minisign.PrivateKey, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return minisign.PrivateKey{}, errs.New(errs.Invalid, "read the signing key").Because(err)
	}
	var key minisign.PrivateKey
	if !minisign.IsEncrypted(text) {
		err = key.UnmarshalText(text)
	} else {
		var password string
		if password, err = a.password("password of " + path); err == nil {
			key, err = minisign.DecryptKey(password, text)
		}
	}
	if err != nil {
		return key, errs.New(errs.Invalid, "%s can't be used to sign", path).Because(err).Try("give a secret key of minisign, and its password in $%s", keyPassword)
	}
	return key, nil
}

// pack writes the archive, its checksum and its signature. The archive comes last, whole.
func (a *app) pack(ctx context.Context, client *api.Client, only []string, to string, sign *minisign.PrivateKey) error {
	f, err := renameio.NewPendingFile(to, renameio.WithPermissions(0o644))
	if err != nil {
		return errs.New(errs.Invalid, "write the archive").Because(err)
	}
	defer f.Cleanup()
	p := a.progress("")
	defer p.close()
	sum, size := sha256.New(), int64(0)
	count := writerFunc(func(b []byte) (int, error) {
		size += int64(len(b))
		p.event(api.Event{Stage: "packing", Done: size})
		return len(b), nil
	})
	if err := client.PackRuntime(ctx, only, io.MultiWriter(f, sum, count)); err != nil {
		return err
	}
	if sign != nil {
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			return err
		}
		r := minisign.NewReader(f)
		if _, err := io.Copy(io.Discard, r); err != nil {
			return err
		}
		comment := filepath.Base(to)
		if err := renameio.WriteFile(to+".minisig", r.SignWithComments(*sign, comment, "signature of "+comment), 0o644); err != nil {
			return err
		}
	} else if err := os.Remove(to + ".minisig"); err != nil && !errors.Is(err, os.ErrNotExist) { // of another archive
		return err
	}
	line := fmt.Sprintf("%x  %s\n", sum.Sum(nil), filepath.Base(to))
	if err := renameio.WriteFile(to+".sha256", []byte(line), 0o644); err != nil {
		return err
	}
	if err := f.CloseAtomicallyReplace(); err != nil {
		return err
	}
	a.print("%s", line)
	return nil
}

type writerFunc func([]byte) (int, error)

func (w writerFunc) Write(b []byte) (int, error) { return w(b) }
