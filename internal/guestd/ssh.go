package guestd

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"time"

	"golang.org/x/crypto/ssh"

	"banger/internal/guest/channel"
)

// sshIdentity is what the SSH server is known by and whom it lets in.
type sshIdentity struct {
	hostKey    ssh.Signer
	authorized [][]byte // public keys in wire format
}

// newSSHIdentity parses a PEM host key and lines of an authorized_keys file. Without a
// host key there is no SSH server, and the result is nil.
func newSSHIdentity(hostKey string, authorizedKeys []string) (*sshIdentity, error) {
	if hostKey == "" {
		return nil, nil
	}
	signer, err := ssh.ParsePrivateKey([]byte(hostKey))
	if err != nil {
		return nil, fmt.Errorf("host key: %w", err)
	}
	id := &sshIdentity{hostKey: signer}
	for _, line := range authorizedKeys {
		key, _, _, _, err := ssh.ParseAuthorizedKey([]byte(line))
		if err != nil {
			return nil, fmt.Errorf("authorized key %q: %w", line, err)
		}
		id.authorized = append(id.authorized, key.Marshal())
	}
	return id, nil
}

// sshHandshakeTimeout bounds the time until a client has authenticated.
const sshHandshakeTimeout = 60 * time.Second

var errNotAuthorized = errors.New("this key is not authorized")

// sshConfig is made for each connection: configure may change the keys meanwhile. It leaves
// the choice of cipher to the client: OpenSSH's first, chacha20-poly1305, is 1.6 times as
// fast as AES-GCM where AES instructions are emulated, and fast enough elsewhere.
func (a *Agent) sshConfig(id *sshIdentity) *ssh.ServerConfig {
	conf := &ssh.ServerConfig{
		ServerVersion: "SSH-2.0-banger",
		PublicKeyCallback: func(c ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
			if _, err := a.lookup(c.User()); err != nil {
				return nil, err
			}
			wire := key.Marshal()
			for _, known := range id.authorized {
				if bytes.Equal(known, wire) {
					return &ssh.Permissions{}, nil
				}
			}
			return nil, errNotAuthorized
		},
	}
	conf.AddHostKey(id.hostKey)
	return conf
}

// serveSSH is one SSH connection.
func (a *Agent) serveSSH(s *channel.Stream) {
	a.mu.Lock()
	identity := a.id.ssh
	a.mu.Unlock()
	var id *sshIdentity
	var err error
	if identity != nil {
		id, err = identity()
	}
	if err != nil {
		a.Log.Printf("ssh: refused: %v", err)
		return
	}
	if id == nil {
		a.Log.Printf("ssh: refused, no host key is configured")
		return
	}
	timer := time.AfterFunc(sshHandshakeTimeout, func() { s.Reset() })
	conn, channels, requests, err := ssh.NewServerConn(s, a.sshConfig(id))
	timer.Stop()
	if err != nil {
		return
	}
	defer conn.Close()
	user, err := a.lookup(conn.User())
	if err != nil {
		return
	}
	c := &sshConn{agent: a, conn: conn, user: user, forwards: forwards{listeners: map[string]net.Listener{}}}
	defer c.closeListeners()
	go c.globalRequests(requests)
	for ch := range channels {
		go c.open(ch)
	}
}

// sshConn is an authenticated connection.
type sshConn struct {
	agent *Agent
	conn  *ssh.ServerConn
	user  account

	forwards
}

func (c *sshConn) open(ch ssh.NewChannel) {
	switch ch.ChannelType() {
	case "session":
		c.session(ch)
	case "direct-tcpip":
		var to struct {
			Host       string
			Port       uint32
			Originator string
			OrigPort   uint32
		}
		if ssh.Unmarshal(ch.ExtraData(), &to) != nil {
			ch.Reject(ssh.ConnectionFailed, "malformed request")
			return
		}
		c.direct(ch, "tcp", net.JoinHostPort(to.Host, fmt.Sprint(to.Port)))
	case "direct-streamlocal@openssh.com":
		var to struct {
			Path       string
			Originator string
			OrigPort   uint32
		}
		if ssh.Unmarshal(ch.ExtraData(), &to) != nil {
			ch.Reject(ssh.ConnectionFailed, "malformed request")
			return
		}
		c.direct(ch, "unix", to.Path)
	default:
		ch.Reject(ssh.UnknownChannelType, "unknown channel type")
	}
}
