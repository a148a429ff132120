package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"

	"github.com/spf13/cobra"

	"banger/api"
)

const forwardSyntax = "[HOSTIP:]HOST:GUEST[/udp]"

func (a *app) portCommand() *cobra.Command {
	var change api.ChangePorts
	var channel []string
	var asJSON bool
	cmd := &cobra.Command{
		Use:                   "port [flags] REF",
		DisableFlagsInUseLine: true,
		Short:                 "Show or change which ports of the host lead to a VM's",
		Long: `Without flags, list the ports that are forwarded to a VM. --add and --rm change them, at
once if it runs; they stay with the VM. A port is ` + forwardSyntax + `, and is
forwarded from 127.0.0.1 unless HOSTIP says otherwise.

--forward needs no network in the VM: until it is interrupted, this command itself listens
and passes connections on over the control channel.`,
		Example: `  banger port web --add 8080:80
  banger port web --forward 5432:5432`,
		Args:              args(1, 1, "a VM"),
		ValidArgsFunction: a.completeVMs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(channel) > 0 && len(change.Add)+len(change.Remove) > 0 {
				return badUsage("--forward excludes --add and --rm: it is over when the command is")
			}
			ways, err := parseWays(channel)
			if err != nil {
				return err
			}
			client, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			if len(ways) > 0 {
				return a.forwardChannel(cmd.Context(), client, args[0], ways)
			}
			var vm api.VM
			if len(change.Add)+len(change.Remove) > 0 {
				vm, err = client.ChangePorts(cmd.Context(), args[0], change)
			} else {
				vm, err = client.VM(cmd.Context(), args[0])
			}
			if err != nil {
				return err
			}
			if asJSON {
				return a.json(append([]api.Forward{}, vm.Network.Forwards...))
			}
			return a.table(forwardRows(vm.Network.Forwards))
		},
	}
	f := cmd.Flags()
	f.StringArrayVar(&change.Add, "add", nil, "forward one more `port`")
	f.StringArrayVar(&change.Remove, "rm", nil, "forward this `port` no more")
	f.BoolVar(&asJSON, "json", false, "as a JSON array")
	f.StringArrayVarP(&channel, "forward", "L", nil, "forward a TCP `port` over the control channel, until interrupted")
	return cmd
}

func forwardRows(forwards []api.Forward) [][]string {
	rows := [][]string{{"HOST", "VM", "PROTOCOL"}}
	for _, f := range forwards {
		rows = append(rows, []string{net.JoinHostPort(f.HostIP, strconv.Itoa(f.HostPort)), strconv.Itoa(f.GuestPort), f.Protocol})
	}
	return rows
}

// way is a port of this host's, and where in the VM its connections go.
type way struct{ host, guest string }

// parseWays reads what --forward got. The ports of those that the daemon forwards it checks
// itself.
func parseWays(texts []string) (all []way, err error) {
	for _, text := range texts {
		parts := strings.Split(strings.TrimSuffix(text, "/tcp"), ":")
		host := "127.0.0.1"
		if len(parts) == 3 {
			host, parts = parts[0], parts[1:]
		}
		if len(parts) != 2 || !aPort(parts[0]) || !aPort(parts[1]) || net.ParseIP(host) == nil {
			return nil, badUsage("%q is no TCP port to forward; write it as HOST:GUEST or HOSTIP:HOST:GUEST, as in 8080:80", text)
		}
		all = append(all, way{net.JoinHostPort(host, parts[0]), net.JoinHostPort("127.0.0.1", parts[1])})
	}
	return all, nil
}

func aPort(text string) bool {
	n, err := strconv.ParseUint(text, 10, 16)
	return err == nil && n > 0
}

// forwardChannel listens and passes connections on until it is interrupted, or a listener
// fails.
func (a *app) forwardChannel(ctx context.Context, client *api.Client, ref string, ways []way) error {
	vm, err := client.VM(ctx, ref)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var serving sync.WaitGroup
	defer serving.Wait()
	failed := make(chan error, len(ways))
	for _, w := range ways {
		ln, err := net.Listen("tcp", w.host)
		if err != nil {
			cancel()
			return fmt.Errorf("forward port %s: %w", w.host, errors.Unwrap(err))
		}
		context.AfterFunc(ctx, func() { ln.Close() })
		a.note("%s leads to port %s of %s", ln.Addr(), w.guest[strings.LastIndexByte(w.guest, ':')+1:], shown(vm.Name))
		serving.Go(func() { failed <- a.serveWay(ctx, client, vm.ID, ln, w) })
	}
	select {
	case err = <-failed:
		cancel()
		return left(ctx, err)
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (a *app) serveWay(ctx context.Context, client *api.Client, ref string, ln net.Listener, w way) error {
	var joined sync.WaitGroup
	defer joined.Wait()
	for {
		conn, err := ln.Accept()
		if err != nil {
			return err
		}
		joined.Go(func() {
			defer conn.Close()
			defer context.AfterFunc(ctx, func() { conn.Close() })()
			s, err := client.Dial(ctx, ref, "tcp", w.guest)
			if err != nil {
				if ctx.Err() == nil {
					a.note("%s: %s", w.host, shown(err.Error()))
				}
				return
			}
			defer s.Close()
			defer context.AfterFunc(ctx, func() { s.Close() })()
			both(conn.(*net.TCPConn), s)
		})
	}
}

// both copies each way until both have ended; an end is passed on.
func both(conn *net.TCPConn, s api.Stream) {
	var back sync.WaitGroup
	back.Go(func() {
		if _, err := io.Copy(conn, s); err != nil {
			conn.Close()
			return
		}
		_ = conn.CloseWrite() // it may have gone
	})
	if _, err := io.Copy(s, conn); err != nil {
		s.Close()
	} else {
		_ = s.CloseWrite()
	}
	back.Wait()
}
