package hypervisor

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"banger/internal/errs"
)

const hugePage = 2 << 20 // bytes

// ErrHugePages is the error of saving a machine whose memory is of huge pages: a file has none to go on
// from.
func ErrHugePages() error {
	return errs.New(errs.Unavailable, "a machine of huge pages can't be saved, nor gone on from").Try("make the VM without --huge-pages")
}

// CheckHugePages finds out whether a host whose root is there has as much memory in pages of 2 MiB. A VMM
// that asks for more is killed when its guest comes to touch what there is not.
func CheckHugePages(root string, bytes int64) error {
	if bytes%hugePage != 0 {
		return errs.New(errs.Invalid, "a machine of huge pages has a multiple of 2 MiB of memory, and not %d MiB", bytes>>20)
	}
	free := int64(0)
	for name, sign := range map[string]int64{"free_hugepages": 1, "resv_hugepages": -1} {
		b, err := os.ReadFile(filepath.Join(root, "sys/kernel/mm/hugepages/hugepages-2048kB", name))
		if err != nil {
			return errs.New(errs.Unavailable, "this host has no huge pages of 2 MiB").Because(err).Try("leave --huge-pages out")
		}
		n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
		if err != nil {
			return err
		}
		free += sign * n
	}
	if want := bytes / hugePage; free < want {
		return errs.New(errs.Unavailable, "the machine takes %d huge pages, and this host has %d that are free", want, max(0, free)).
			Try("reserve more, as root: sysctl -w vm.nr_hugepages=NUMBER; or leave --huge-pages out")
	}
	return nil
}
