package unixsock

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestPathsOfEveryLength(t *testing.T) {
	for _, depth := range []int{0, 1, 5} {
		dir := filepath.Join(t.TempDir(), strings.Repeat(strings.Repeat("d", 60)+"/", depth))
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, "s.sock")
		var l net.Listener
		err := WithAddress(path, func(address string) (err error) {
			l, err = net.Listen("unix", address)
			return err
		})
		if err != nil {
			t.Fatalf("listen at %d bytes: %v", len(path), err)
		}
		l.(*net.UnixListener).SetUnlinkOnClose(false) // the address means something else by now
		defer l.Close()
		if info, err := os.Stat(path); err != nil || info.Mode()&os.ModeSocket == 0 {
			t.Errorf("at %d bytes: %v, %v", len(path), info, err)
		}
		err = WithAddress(path, func(address string) error {
			c, err := net.Dial("unix", address)
			if err == nil {
				c.Close()
			}
			return err
		})
		if err != nil {
			t.Errorf("connect at %d bytes: %v", len(path), err)
		}
	}
	err := WithAddress("/nonesuch/"+strings.Repeat("d", 200)+"/s", func(string) error { return nil })
	if !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no directory: %v", err)
	}
}
