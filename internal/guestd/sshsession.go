package guestd

import (
	"errors"
	"io"
	"os"
	"sync"

	"github.com/pkg/sftp"
	"golang.org/x/crypto/ssh"

	"banger/internal/guest/proto"
)

// sshSession is a session channel: at most one command, shell or subsystem.
type sshSession struct {
	conn *sshConn
	ch   ssh.Channel
	spec spec

	begun func() // what the last request started; to be run once that is answered

	mu      sync.Mutex // guards job and started
	job     *job
	started bool
}

func (c *sshConn) session(newch ssh.NewChannel) {
	ch, requests, err := newch.Accept()
	if err != nil {
		return
	}
	s := &sshSession{conn: c, ch: ch, spec: spec{user: c.user}}
	for req := range requests {
		ok := s.request(req)
		if req.WantReply {
			req.Reply(ok, nil)
		}
		if s.begun != nil { // only now: it may end, and close the channel, at once
			go s.begun()
			s.begun = nil
		}
	}
	// The client has closed the channel, or the connection is gone.
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.job != nil {
		s.job.hangup()
	}
}

func (s *sshSession) request(req *ssh.Request) bool {
	switch req.Type {
	case "env":
		var kv struct{ Name, Value string }
		if ssh.Unmarshal(req.Payload, &kv) != nil {
			return false
		}
		s.spec.env = append(s.spec.env, kv.Name+"="+kv.Value)
		return true
	case "pty-req":
		return s.pty(req.Payload)
	case "window-change":
		var w struct{ Cols, Rows, Width, Height uint32 }
		if ssh.Unmarshal(req.Payload, &w) != nil {
			return false
		}
		s.withJob(func(j *job) { j.resize(size(w.Rows, w.Cols)) })
		return true
	case "signal":
		var sig struct{ Name string }
		if ssh.Unmarshal(req.Payload, &sig) != nil {
			return false
		}
		s.withJob(func(j *job) { j.signal(sig.Name) })
		return true
	case "shell":
		return s.run(nil)
	case "exec":
		var cmd struct{ Command string }
		if ssh.Unmarshal(req.Payload, &cmd) != nil {
			return false
		}
		return s.run([]string{s.spec.user.shell, "-c", cmd.Command})
	case "subsystem":
		var sub struct{ Name string }
		if ssh.Unmarshal(req.Payload, &sub) != nil || sub.Name != "sftp" {
			return false
		}
		return s.sftp()
	}
	return false
}

func (s *sshSession) pty(payload []byte) bool {
	var p struct {
		Term                      string
		Cols, Rows, Width, Height uint32
		Modes                     string
	}
	if ssh.Unmarshal(payload, &p) != nil {
		return false
	}
	s.spec.tty = true
	at := size(p.Rows, p.Cols)
	s.spec.size = &at
	s.spec.env = append(s.spec.env, "TERM="+p.Term)
	return true
}

// size drops what no terminal has.
func size(rows, cols uint32) proto.Size {
	return proto.Size{Rows: uint16(min(rows, 65535)), Cols: uint16(min(cols, 65535))}
}

func (s *sshSession) withJob(f func(*job)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.job != nil {
		f(s.job)
	}
}

// begin tells whether this is the first thing that the channel is used for.
func (s *sshSession) begin() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	first := !s.started
	s.started = true
	return first
}

func (s *sshSession) run(argv []string) bool {
	if !s.begin() {
		return false
	}
	s.spec.argv = argv
	// Only the write methods: the channel's end of file comes after both outputs.
	std := stdio{in: s.ch, out: struct{ io.Writer }{s.ch}, err: struct{ io.Writer }{s.ch.Stderr()}}
	j, err := s.conn.agent.start(s.spec, std)
	if err != nil {
		s.begun = func() { s.fail(err) }
		return true
	}
	s.mu.Lock()
	s.job = j
	s.mu.Unlock()
	s.begun = func() {
		exit := j.wait()
		j.flush()
		s.end(exit)
	}
	return true
}

// fail ends a session whose command could not be started, as a shell would.
func (s *sshSession) fail(err error) {
	exit := proto.Exit{Code: 126}
	if c, ok := errors.AsType[*cantRun](err); ok {
		exit = c.Exit
	}
	io.WriteString(s.ch.Stderr(), err.Error()+"\n")
	s.end(exit)
}

// end tells how the command ended and closes the channel. The status goes before the end
// of file: on that a client whose own input has ended closes the channel, after which
// nothing more can be sent on it.
func (s *sshSession) end(exit proto.Exit) {
	if exit.Signal != "" {
		s.ch.SendRequest("exit-signal", false, ssh.Marshal(struct {
			Name       string
			CoreDumped bool
			Message    string
			Language   string
		}{exit.Signal, false, "", ""}))
	} else {
		s.ch.SendRequest("exit-status", false, ssh.Marshal(struct{ Code uint32 }{uint32(exit.Code)}))
	}
	s.ch.CloseWrite()
	s.ch.Close()
}

// sftp serves files as root only: the agent itself reads and writes them. For another user
// the image's own sftp-server does, if there is one.
func (s *sshSession) sftp() bool {
	if s.spec.user.uid != 0 {
		for _, path := range []string{"/usr/lib/openssh/sftp-server", "/usr/lib/ssh/sftp-server", "/usr/libexec/openssh/sftp-server", "/usr/libexec/sftp-server"} {
			if _, err := os.Stat(path); err == nil {
				return s.run([]string{path})
			}
		}
		return false
	}
	if !s.begin() {
		return false
	}
	server, err := sftp.NewServer(keptOpen{s.ch}, sftp.WithServerWorkingDirectory(s.spec.user.home))
	if err != nil {
		return false
	}
	s.begun = func() {
		err := server.Serve()
		server.Close()
		code := 0
		if err != nil && !errors.Is(err, io.EOF) {
			code = 1
		}
		s.end(proto.Exit{Code: code})
	}
	return true
}

// keptOpen keeps the SFTP server from closing the channel, which ends only after the exit
// status has been sent: scp takes a session without one for a failure.
type keptOpen struct{ io.ReadWriter }

func (keptOpen) Close() error { return nil }
