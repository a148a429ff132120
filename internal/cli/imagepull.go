package cli

import (
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/spf13/cobra"

	"banger/api"
	"banger/internal/errs"
)

func (a *app) imagePullCommand() *cobra.Command {
	var req api.PullImage
	var quiet bool
	cmd := &cobra.Command{
		Use:                   "pull [flags] REFERENCE [NAME]",
		DisableFlagsInUseLine: true,
		Short:                 "Make an image of a container image in a registry",
		Long: `Make an image of a container image in a registry. The reference is one of Docker's: NAME:TAG,
HOST/NAME:TAG, or NAME@sha256:… for what never changes. Who has logged in with docker, podman or
skopeo need not do so again. A pull that was interrupted goes on where it broke off. The image is called
NAME, or else what the reference says, and that is printed.`,
		Example: "  banger image pull debian:12-slim",
		Args:    args(1, 2, "a reference, and perhaps a name"),
		RunE: func(cmd *cobra.Command, given []string) error {
			req.Reference = given[0]
			if len(given) == 2 {
				req.Name = given[1]
			}
			var err error
			if req.Credentials, err = registryCredentials(req.Reference); err != nil {
				return err
			}
			client, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			var p watcher = silence{}
			if !quiet {
				p = a.bars()
			}
			made, err := client.PullImage(cmd.Context(), req, p.event)
			p.close()
			if err != nil {
				return err
			}
			a.print("%s\n", shown(made))
			return nil
		},
	}
	f := cmd.Flags()
	f.BoolVarP(&quiet, "quiet", "q", false, "print nothing but the image's name")
	f.StringVar(&req.Platform, "platform", "", "`os/architecture` of the image (linux/amd64)")
	f.Var(size{&req.SizeBytes}, "size", "of its filesystem, like 8G; what fits if none is given")
	return cmd
}

// registryCredentials looks in the files of docker, podman and skopeo, here where the user's are:
// the daemon may be another user's. There may be none; of a reference that is wrong the daemon
// tells.
func registryCredentials(reference string) (*api.RegistryCredentials, error) {
	ref, err := name.ParseReference(reference)
	if err != nil {
		return nil, nil
	}
	auth, err := authn.DefaultKeychain.Resolve(ref.Context())
	if err != nil {
		return nil, errs.New(errs.Invalid, "the credentials for %s can't be read", ref.Context().RegistryStr()).Because(err).
			Try("log in anew, with docker login, podman login or skopeo login")
	}
	if auth == authn.Anonymous {
		return nil, nil
	}
	c, err := auth.Authorization()
	if err != nil {
		return nil, err
	}
	return &api.RegistryCredentials{Username: c.Username, Password: c.Password, Auth: c.Auth, IdentityToken: c.IdentityToken, RegistryToken: c.RegistryToken}, nil
}
