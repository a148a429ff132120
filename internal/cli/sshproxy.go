package cli

import (
	"context"
	"errors"
	"io"
	"strings"

	"github.com/spf13/cobra"
)

// sshProxyCommand is the ProxyCommand: it connects ssh to the SSH server of a VM's agent.
func (a *app) sshProxyCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "ssh-proxy HOST",
		Short: "Connect ssh to a VM",
		Args:  args(1, 1, "a host"),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			s, err := client.DialSSH(cmd.Context(), strings.TrimSuffix(args[0], domain))
			if err != nil {
				return err
			}
			defer s.Close()
			defer context.AfterFunc(cmd.Context(), func() { s.Close() })()
			go func() {
				io.Copy(s, a.Stdin) // an error shows on the way back
				s.CloseWrite()
			}()
			_, err = io.Copy(a.Stdout, s)
			return left(cmd.Context(), err)
		},
	}
	cmd.Hidden = true
	return cmd
}

// sshKnownHostsCommand is the KnownHostsCommand: it prints the host keys of all VMs.
func (a *app) sshKnownHostsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "ssh-known-hosts",
		Short: "Print the host keys of VMs",
		Args:  args(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			keys, err := client.SSH(cmd.Context())
			if err != nil {
				return err
			}
			for _, line := range keys.HostKeys {
				if strings.ContainsAny(line, "\n\r") {
					return errors.New("the daemon sent a host key of several lines")
				}
				a.print("%s\n", line)
			}
			return nil
		},
	}
	cmd.Hidden = true
	return cmd
}
