package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"banger/api"
	"banger/internal/guest/proto"
	"banger/internal/guest/tree"
)

const fakeHostKey = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"

// fakeSession is a command of which some streams have come.
type fakeSession struct {
	fds     map[int]net.Conn
	exec    *proto.Exec
	control net.Conn
}

// hijack answers an upgrade, or an error if there is no such running VM.
func (f *fake) hijack(w http.ResponseWriter, r *http.Request) (net.Conn, *api.VM) {
	f.mu.Lock()
	vm, err := f.find(r.PathValue("ref"))
	if err == nil && vm.State != api.StateRunning {
		err = fail("conflict", "banger start "+vm.Name, "%s does not run: it is %s", vm.Name, vm.State)
	}
	f.mu.Unlock()
	if err != nil {
		w.WriteHeader(fakeStatus[err.Code])
		json.NewEncoder(w).Encode(err)
		return nil, nil
	}
	conn, _, herr := http.NewResponseController(w).Hijack()
	if herr != nil {
		return nil, nil
	}
	io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: "+api.Protocol+"\r\n\r\n")
	return conn, vm
}

func (f *fake) console(w http.ResponseWriter, r *http.Request) {
	if conn, _ := f.hijack(w, r); conn != nil {
		defer conn.Close()
		io.WriteString(conn, "login: ")
		f.noteNow("console")
		io.Copy(conn, conn)
	}
}

func (f *fake) stream(w http.ResponseWriter, r *http.Request) {
	conn, vm := f.hijack(w, r)
	if conn == nil {
		return
	}
	var h proto.Header
	if proto.ReadFrame(conn, &h) != nil {
		conn.Close()
		return
	}
	root := filepath.Join(f.root, vm.ID)
	os.MkdirAll(root, 0o755)
	switch h.Service {
	case proto.ServiceStdio:
		f.join(h.Stdio.Session, func(s *fakeSession) { s.fds[h.Stdio.FD] = conn })
	case proto.ServiceExec:
		f.join(h.Exec.Session, func(s *fakeSession) { s.exec, s.control = h.Exec, conn })
	case proto.ServicePut:
		defer conn.Close()
		dst, err := tree.Target(filepath.Join(root, h.Put.Path), h.Put.Base)
		if err == nil {
			err = tree.Unpack(conn, dst, tree.Options{})
		}
		fakeReply(conn, nil, err)
	case proto.ServiceGet:
		defer conn.Close()
		src := filepath.Join(root, h.Get.Path)
		info, err := tree.Stat(src)
		fakeReply(conn, proto.Got{Base: filepath.Base(src), IsDir: info.IsDir, Bytes: info.Bytes}, err)
		if err == nil {
			err = tree.Pack(conn, src, false, nil)
			fakeReply(conn, proto.GotAll{}, err)
		}
	case proto.ServiceSSH:
		defer conn.Close()
		io.WriteString(conn, "SSH-2.0-fake\r\n")
		io.Copy(conn, conn)
	}
}

func fakeReply(w io.Writer, result any, err error) {
	if err != nil {
		proto.WriteFrame(w, proto.Reply{Error: &proto.Error{Code: "invalid", Message: err.Error()}})
		return
	}
	b, _ := json.Marshal(result)
	proto.WriteFrame(w, proto.Reply{Result: b})
}

// join adds a stream to its session and starts the command once all have come.
func (f *fake) join(id string, add func(*fakeSession)) {
	f.mu.Lock()
	s := f.sessions[id]
	if s == nil {
		s = &fakeSession{fds: map[int]net.Conn{}}
		f.sessions[id] = s
	}
	add(s)
	whole := s.exec != nil && len(s.fds) == len(s.exec.FDs)
	if whole {
		f.note("exec %q tty=%v user=%q dir=%q env=%q detach=%v", s.exec.Argv, s.exec.TTY, s.exec.User, s.exec.Dir, s.exec.Env, s.exec.Detach)
	}
	f.mu.Unlock()
	if whole {
		go f.command(s)
	}
}

// command plays the guest's commands.
func (f *fake) command(s *fakeSession) {
	defer s.control.Close()
	in, out, errw := io.Reader(bytes.NewReader(nil)), io.Writer(io.Discard), io.Writer(io.Discard)
	for fd, conn := range s.fds {
		defer conn.Close()
		switch {
		case fd == 0:
			in = conn
			if s.exec.TTY {
				out = conn
			}
		case fd == 1:
			out = conn
		case fd == 2:
			errw = conn
		}
	}
	exit := proto.Exit{}
	argv := append(s.exec.Argv, "", "")
	switch argv[0] {
	case "cat":
		io.Copy(out, in)
	case "echo":
		fmt.Fprintln(out, strings.Join(s.exec.Argv[1:], " "))
	case "err":
		fmt.Fprintln(errw, "to stderr")
	case "exit":
		exit.Code, _ = strconv.Atoi(argv[1])
	case "yes":
		for {
			if _, err := io.WriteString(out, strings.Repeat("y\n", 1000)); err != nil {
				exit = proto.Exit{Code: 141, Signal: "PIPE"}
				f.noteNow("yes got a broken pipe")
				break
			}
		}
	case "missing":
		exit = proto.Exit{Code: 127, Message: "missing\x1b[2J: not found"}
	case "vanish":
		return
	case "signal": // ends by the first signal that comes
		f.noteNow("signal waits")
		exit = f.untilSignal(s, out)
	case "deaf": // ends by none
		f.noteNow("deaf waits")
		var in proto.ExecInput
		for proto.ReadFrame(s.control, &in) == nil {
			f.noteNow("deaf got %s", in.Signal)
		}
		f.noteNow("deaf was left")
		return
	case "size": // tells the terminal's size, and again when it changes
		fmt.Fprintf(out, "size %d %d\r\n", s.exec.Size.Rows, s.exec.Size.Cols)
		f.noteNow("size told")
		exit = f.untilResize(s, out)
	case "":
		io.WriteString(out, "$ ")
		for key := make([]byte, 1); key[0] != 4; { // Ctrl-D ends it
			if _, err := in.Read(key); err != nil {
				break
			}
			out.Write(key)
		}
	}
	proto.WriteFrame(s.control, proto.ExecEvent{Exit: &exit})
}

func (f *fake) untilSignal(s *fakeSession, out io.Writer) proto.Exit {
	var in proto.ExecInput
	for in.Signal == "" {
		if proto.ReadFrame(s.control, &in) != nil {
			return proto.Exit{Code: 129}
		}
	}
	fmt.Fprintf(out, "got %s\n", in.Signal)
	numbers := map[string]int{"HUP": 1, "INT": 2, "QUIT": 3, "USR1": 10, "USR2": 12, "TERM": 15}
	return proto.Exit{Code: 128 + numbers[in.Signal], Signal: in.Signal}
}

func (f *fake) untilResize(s *fakeSession, out io.Writer) proto.Exit {
	var in proto.ExecInput
	for in.Resize == nil {
		if proto.ReadFrame(s.control, &in) != nil {
			return proto.Exit{Code: 129}
		}
	}
	fmt.Fprintf(out, "size %d %d\r\n", in.Resize.Rows, in.Resize.Cols)
	return proto.Exit{}
}
