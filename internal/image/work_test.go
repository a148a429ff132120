package image

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"banger/internal/image/shelf"
)

// What a build leaves whose process was killed goes with what is still at it, wherever that works.
func TestSweepEndsWhatIsStillAtWork(t *testing.T) {
	root := t.TempDir()
	work, err := shelf.Scratch(root)
	if err != nil {
		t.Fatal(err)
	}
	elsewhere, err := makeOutside(work)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(elsewhere) })
	if info, err := os.Stat(elsewhere); err != nil || info.Mode().Perm() != 0o711 {
		t.Errorf("elsewhere is %v, %v", info.Mode(), err)
	}
	// It writes on and on, and notices nothing.
	c := exec.Command("sh", "-c", `trap "" TERM; echo; while :; do mkdir -p "$0/a" "$1/b" && echo x >"$0/a/x" && echo x >"$1/b/x"; done`, work, elsewhere)
	c.Env = append(os.Environ(), workMark+work)
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	ready, err := c.StdoutPipe()
	if err == nil {
		err = c.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ready.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	err = Sweep(t.Context(), root)
	c.Process.Kill()
	c.Wait()
	if err != nil {
		t.Error(err)
	}
	for _, dir := range []string{work, elsewhere} {
		if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is left: %v", filepath.Base(dir), err)
		}
	}
}
