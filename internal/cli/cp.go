package cli

import (
	"strings"

	"github.com/spf13/cobra"
)

func (a *app) cpCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "cp SRC DST",
		Short: "Copy a file or tree into a VM or out of it",
		Long: `Copy a file or tree into a VM or out of it. One of SRC and DST is VM:PATH. Modes, times
and symbolic links are kept. A local name with a colon is given as ./a:b.`,
		Example:           "  banger cp ./src web:/srv",
		Args:              args(2, 2, "a source and a destination"),
		ValidArgsFunction: a.completeVMs,
		RunE: func(cmd *cobra.Command, args []string) error {
			src, dst := parsePlace(args[0]), parsePlace(args[1])
			if err := checkPlaces(src, dst); err != nil {
				return err
			}
			client, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			p := a.progress("")
			defer p.close()
			if dst.vm != nil {
				return client.Put(cmd.Context(), *dst.vm, src.path, dst.path, p.bytes)
			}
			return client.Get(cmd.Context(), *src.vm, src.path, dst.path, p.bytes)
		},
	}
}

// place is one side of a copy.
type place struct {
	vm   *string // reference of the VM; nil on this host
	path string
}

// parsePlace reads VM:PATH or a local path. A colon after a slash is part of a local path.
func parsePlace(s string) place {
	ref, path, ok := strings.Cut(s, ":")
	if !ok || strings.Contains(ref, "/") {
		return place{path: s}
	}
	return place{vm: &ref, path: path}
}

func checkPlaces(src, dst place) error {
	switch {
	case src.vm == nil && dst.vm == nil:
		return badUsage("neither side is in a VM: write one as VM:PATH")
	case src.vm != nil && dst.vm != nil:
		return badUsage("both sides are in a VM: copy to this host first, or write a local name with a colon as ./a:b")
	}
	for _, p := range []place{src, dst} {
		switch {
		case p.vm != nil && *p.vm == "":
			return badUsage("no VM is named before the colon of %q", ":"+p.path)
		case p.path == "" && p.vm != nil:
			return badUsage("no path follows %q", *p.vm+":")
		case p.path == "":
			return badUsage("an empty path names nothing")
		}
	}
	return nil
}
