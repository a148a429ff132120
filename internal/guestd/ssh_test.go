package guestd_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"

	"github.com/pkg/sftp"
	"golang.org/x/crypto/ssh"

	"banger/internal/guest/proto"
)

func newKey(t *testing.T) (ssh.Signer, string) {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewSignerFromKey(key)
	if err != nil {
		t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(key, "")
	if err != nil {
		t.Fatal(err)
	}
	return signer, string(pem.EncodeToMemory(block))
}

// sshWorld is a world whose SSH server knows one key.
type sshWorld struct {
	*world
	hostKey ssh.PublicKey
	client  ssh.Signer
}

func newSSHWorld(t *testing.T) *sshWorld {
	t.Helper()
	w := &sshWorld{world: newWorld(t)}
	host, hostPEM := newKey(t)
	w.hostKey = host.PublicKey()
	w.client, _ = newKey(t)
	w.configure(t, proto.Configure{SSHHostKey: hostPEM,
		AuthorizedKeys: []string{string(ssh.MarshalAuthorizedKey(w.client.PublicKey()))}})
	return w
}

func (w *sshWorld) dial(t *testing.T, user string, key ssh.Signer) (*ssh.Client, error) {
	t.Helper()
	s, err := w.agent.Open(t.Context(), proto.Header{Service: proto.ServiceSSH})
	if err != nil {
		t.Fatal(err)
	}
	conn, channels, requests, err := ssh.NewClientConn(s, "vm", &ssh.ClientConfig{User: user,
		Auth: []ssh.AuthMethod{ssh.PublicKeys(key)}, HostKeyCallback: ssh.FixedHostKey(w.hostKey)})
	if err != nil {
		return nil, err
	}
	c := ssh.NewClient(conn, channels, requests)
	t.Cleanup(func() { c.Close() })
	return c, nil
}

func (w *sshWorld) login(t *testing.T) *ssh.Client {
	t.Helper()
	c, err := w.dial(t, "root", w.client)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func newSession(t *testing.T, c *ssh.Client) *ssh.Session {
	t.Helper()
	s, err := c.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func TestSSHLetsInOnlyTheKeyAndKnownUsers(t *testing.T) {
	w := newSSHWorld(t)
	stranger, _ := newKey(t)
	if _, err := w.dial(t, "root", stranger); err == nil {
		t.Error("a stranger was let in")
	}
	if _, err := w.dial(t, "mallory", w.client); err == nil {
		t.Error("an unknown user was let in")
	}
	if _, err := w.dial(t, "root", w.client); err != nil {
		t.Error(err)
	}
}

func TestSSHWithoutHostKeyIsClosed(t *testing.T) {
	w := &sshWorld{world: newWorld(t)}
	w.client, _ = newKey(t)
	w.hostKey = w.client.PublicKey()
	if _, err := w.dial(t, "root", w.client); err == nil {
		t.Error("it was served")
	}
}

func TestSSHCommands(t *testing.T) {
	c := newSSHWorld(t).login(t)
	tests := []struct {
		command, stdin, stdout, stderr string
		status                         int
		signal                         string
	}{
		{command: "cat; echo err >&2", stdin: "hello", stdout: "hello", stderr: "err\n"},
		{command: "exit 7", status: 7},
		{command: "kill -TERM $$", status: 143, signal: "TERM"},
		{command: "no-such-command", status: 127, stderr: "not found"},
	}
	for _, tt := range tests {
		s := newSession(t, c)
		var out, errOut bytes.Buffer
		s.Stdin, s.Stdout, s.Stderr = strings.NewReader(tt.stdin), &out, &errOut
		err := s.Run(tt.command)
		status, signal := 0, ""
		if ee, ok := errors.AsType[*ssh.ExitError](err); ok {
			status, signal = ee.ExitStatus(), ee.Signal()
		} else if err != nil {
			t.Errorf("%s: %v", tt.command, err)
		}
		if out.String() != tt.stdout || !strings.Contains(errOut.String(), tt.stderr) || status != tt.status || signal != tt.signal {
			t.Errorf("%s: got %q, %q, %d, %q", tt.command, out.String(), errOut.String(), status, signal)
		}
	}
}

func TestSSHTerminal(t *testing.T) {
	s := newSession(t, newSSHWorld(t).login(t))
	if err := s.Setenv("LANG", "C.UTF-8"); err != nil {
		t.Error(err)
	}
	if err := s.RequestPty("vt100", 11, 22, ssh.TerminalModes{}); err != nil {
		t.Fatal(err)
	}
	out := &lineWaiter{line: "11 22", then: func() { s.WindowChange(33, 44) }}
	s.Stdout = out
	err := s.Run("trap 'stty size; exit 3' WINCH; echo $TERM $LANG; stty size; while :; do sleep 0.1; done")
	if ee, ok := errors.AsType[*ssh.ExitError](err); !ok || ee.ExitStatus() != 3 {
		t.Errorf("got %v", err)
	}
	for _, want := range []string{"vt100 C.UTF-8", "11 22", "33 44"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is not in %q", want, out.String())
		}
	}
}

func TestSSHShell(t *testing.T) {
	s := newSession(t, newSSHWorld(t).login(t))
	s.Stdin = strings.NewReader("echo $0; exit 5\n")
	var out bytes.Buffer
	s.Stdout = &out
	if err := s.Shell(); err != nil {
		t.Fatal(err)
	}
	err := s.Wait()
	if ee, ok := errors.AsType[*ssh.ExitError](err); !ok || ee.ExitStatus() != 5 || out.String() != "-sh\n" {
		t.Errorf("got %v, %q", err, out.String())
	}
}

func TestSSHSignal(t *testing.T) {
	s := newSession(t, newSSHWorld(t).login(t))
	s.Stdout = &lineWaiter{line: "ready", then: func() { s.Signal(ssh.SIGUSR1) }}
	err := s.Run("trap 'exit 4' USR1; echo ready; while :; do sleep 0.1; done")
	if ee, ok := errors.AsType[*ssh.ExitError](err); !ok || ee.ExitStatus() != 4 {
		t.Errorf("got %v", err)
	}
}

func TestSFTP(t *testing.T) {
	w := newSSHWorld(t)
	c, err := sftp.NewClient(w.login(t))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	f, err := c.Create("made") // relative: in root's home
	if err != nil {
		t.Fatal(err)
	}
	data := strings.Repeat("sftp", 100_000)
	if _, err := io.Copy(f, strings.NewReader(data)); err != nil {
		t.Fatal(err)
	}
	f.Close()
	wantFile(t, w.root+"/home/made", data)
}

func TestSSHForwardsBothWays(t *testing.T) {
	w := newSSHWorld(t)
	c := w.login(t)
	back, err := c.Listen("tcp", "127.0.0.1:0") // listens in the guest
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		conn, err := back.Accept()
		if err != nil {
			return
		}
		io.Copy(conn, conn)
		conn.Close()
	}()
	conn, err := c.Dial("tcp", back.Addr().String()) // connects in the guest
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(conn, "there and back")
	conn.(interface{ CloseWrite() error }).CloseWrite()
	if got, err := io.ReadAll(conn); err != nil || string(got) != "there and back" {
		t.Errorf("got %q, %v", got, err)
	}
	back.Close()
	if conn, err := net.Dial("tcp", back.Addr().String()); err == nil {
		conn.Close()
		t.Error("the guest still listens")
	}
}

func TestSSHAsAnotherUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIP: changing the user needs root")
	}
	w := newSSHWorld(t)
	c, err := w.dial(t, "nobody", w.client)
	if err != nil {
		t.Fatal(err)
	}
	out, err := newSession(t, c).Output("id -u")
	if err != nil || string(out) != "65534\n" {
		t.Errorf("got %q, %v", out, err)
	}
}
