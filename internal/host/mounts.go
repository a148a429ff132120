package host

import (
	"errors"
	"io/fs"
	"path/filepath"
)

// MountsBelow returns where below dir something is mounted, as this process sees it: to
// remove the tree would be to remove that, too.
func MountsBelow(dir string) ([]string, error) {
	dir, err := filepath.EvalSymlinks(dir) // the table has none
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	found, err := mountsIn(dir)
	var points []string
	for _, o := range found {
		points = append(points, o.Name)
	}
	return points, err
}
