package guestd

import "golang.org/x/crypto/ssh"

// sshCiphers lists what the server offers, fastest first.
func sshCiphers() []string {
	return []string{ssh.CipherAES128GCM, ssh.CipherAES256GCM, ssh.CipherChaCha20Poly1305, ssh.CipherAES128CTR, ssh.CipherAES256CTR}
}
