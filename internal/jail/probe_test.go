package jail

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	envProbe    = "BANGER_JAIL_PROBE"
	envArgument = "BANGER_JAIL_ARGUMENT"
)

// target is what a probe tries to get at.
type target struct {
	PID                       int
	Own, Base, Peer, Listener string
}

// view is what a probe has found.
type view struct {
	Wrote, Read string
	Refused     map[string]string // what was tried → the error's name
	Files       []string
	Interfaces  []string
}

// runProbe is what the tests' program does in a jail.
func runProbe(name string) int {
	_, _ = os.NewFile(3, "ready").Write([]byte{1}) // those that it starts have none
	var found any
	switch name {
	case "wait":
		_ = unix.Pause()
		return 0
	case "look":
		var of target
		if err := json.Unmarshal([]byte(os.Getenv(envArgument)), &of); err != nil {
			fmt.Println(err)
			return 1
		}
		found = look(of)
	case "fork":
		found = fork()
	case "memory":
		for all := [][]byte{}; ; {
			all = append(all, make([]byte, 1<<20))
			for i := 0; i < 1<<20; i += 4096 {
				all[len(all)-1][i] = 1
			}
		}
	}
	text, err := json.Marshal(found)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Println(string(text))
	return 0
}

func look(of target) (v view) {
	v.Wrote = name(os.WriteFile(of.Own, []byte("its own"), 0))
	base, err := os.ReadFile(of.Base)
	v.Read = string(base) + name(err)
	v.Refused = map[string]string{}
	for what, try := range map[string]func() error{
		"write its base":         func() error { return os.WriteFile(of.Base, []byte("x"), 0) },
		"chmod its base":         func() error { return os.Chmod(of.Base, 0o666) },
		"read its peer's disk":   func() error { _, err := os.ReadFile(of.Peer); return err },
		"read the users":         func() error { _, err := os.ReadFile("/etc/passwd"); return err },
		"make a file":            func() error { return os.WriteFile("/new", nil, 0o600) },
		"make a directory":       func() error { return os.Mkdir(filepath.Join(filepath.Dir(of.Own), "new"), 0o700) },
		"see processes":          func() error { _, err := os.ReadDir("/proc"); return err },
		"leave by the root":      func() error { _, err := os.ReadDir("/../../etc/init.d"); return err },
		"kill its peer":          func() error { return unix.Kill(of.PID, unix.SIGKILL) },
		"trace its peer":         func() error { return unix.PtraceAttach(of.PID) },
		"mount":                  func() error { return unix.Mount("x", "/", "tmpfs", 0, "") },
		"change the root":        func() error { return unix.Chroot("/") },
		"become root":            func() error { return unix.Setresuid(0, 0, 0) },
		"make a device":          func() error { return unix.Mknod("/disk", unix.S_IFBLK|0o600, 0x800) },
		"reach the host":         func() error { _, err := net.Dial("tcp", of.Listener); return err },
		"open files by the 1000": openMany,
		"fill the host's disk":   func() error { return fill(of.Own) },
		"change a loop device":   changeLoop,
	} {
		v.Refused[what] = name(try())
	}
	_ = os.WriteFile(of.Own, []byte("its own"), 0)
	_ = filepath.WalkDir("/", func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			v.Files = append(v.Files, path)
		}
		return nil
	})
	links, _ := net.Interfaces()
	for _, l := range links {
		v.Interfaces = append(v.Interfaces, l.Name)
	}
	return v
}

// name is that of the system's error, or what else there is to say, or "".
func name(err error) string {
	if errno, ok := errors.AsType[syscall.Errno](err); ok {
		return unix.ErrnoName(errno)
	}
	if err != nil {
		return err.Error()
	}
	return ""
}

func openMany() error {
	var all []*os.File
	defer func() {
		for _, f := range all {
			f.Close()
		}
	}()
	for range 1000 {
		f, err := os.Open(os.Args[0])
		if err != nil {
			return err
		}
		all = append(all, f)
	}
	return nil
}

// changeLoop asks for what loop devices do for everyone. There need be none: that they are asked
// is too much.
func changeLoop() error {
	f, err := os.Open(os.Args[0])
	if err != nil {
		return err
	}
	defer f.Close()
	const change = 0x4c06 // LOOP_CHANGE_FD
	return unix.IoctlSetInt(int(f.Fd()), change, int(f.Fd()))
}

func fill(path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteAt(make([]byte, 4<<20), 0)
	if err == nil {
		_, err = f.WriteAt([]byte{1}, 4<<20)
	}
	return err
}

// fork starts copies of the program that wait, until it can't, and tells how many there were.
func fork() int {
	var all []*exec.Cmd
	defer func() {
		for _, c := range all {
			c.Process.Kill()
			c.Wait() // says only that it was killed
		}
	}()
	for range 1000 {
		c := exec.Command(os.Args[0])
		c.Env = []string{envProbe + "=wait"}
		if err := c.Start(); err != nil {
			break
		}
		all = append(all, c)
	}
	return len(all)
}
