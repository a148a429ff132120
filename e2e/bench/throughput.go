package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"banger/internal/guest"
	"banger/internal/guest/proto"
	"banger/internal/guest/session"
)

// tapThroughput measures TCP from a guest on the bridge to the host against the same from the
// same machine at a bridge and a TAP set up by hand, which filter nothing.
func tapThroughput(b *bench) (figures []Figure, err error) {
	if os.Geteuid() != 0 {
		fmt.Println("SKIP: tap_throughput_ratio: bridge networking takes root")
		return nil, nil
	}
	program := filepath.Join(b.scratch, "guestsend")
	if _, err := b.command("env", "CGO_ENABLED=0", "go", "build", "-o", program, "./e2e/bench/guestsend"); err != nil {
		return nil, err
	}
	bare, err := b.machineByHand()
	if err != nil {
		return nil, err
	}
	hand, err := newHandBridge()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, hand.close()) }()
	const n = 9
	var ours, theirs []float64
	err = b.withVM(func(name string) error {
		if _, err := b.banger("cp", program, name+":"+sender); err != nil {
			return err
		}
		info, err := b.client.Network(context.Background())
		if err != nil {
			return err
		}
		return bare.withTAP(hand.tap, handMAC).run(func(_ *exec.Cmd, channel string) error {
			ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
			defer cancel()
			agent, err := handGuest(ctx, channel, program)
			if err != nil {
				return err
			}
			defer agent.Close()
			for range n {
				s, err := received(info.Gateway, func(argv []string) error {
					_, err := b.banger(append([]string{"exec", name, "--"}, argv...)...)
					return err
				})
				if err != nil {
					return err
				}
				ours = append(ours, s)
				if s, err = received(handSubnet.Addr().String(), func(argv []string) error { return execByHand(ctx, agent, argv) }); err != nil {
					return err
				}
				theirs = append(theirs, s)
			}
			return nil
		})
	}, "--net", "bridge", "--host-access")
	if err != nil {
		return nil, err
	}
	o, t := median(ours), median(theirs)
	rate := func(s float64) float64 { return sent / (1 << 20) / s }
	return []Figure{{"tap_throughput_ratio", t / o, "ratio", n, 1, fmt.Sprintf("guest to host by TCP: %.0f MiB/s against %.0f MiB/s of a TAP set up by hand", rate(o), rate(t))}}, nil
}

const (
	sender = "/root/guestsend" // where the program lies in guests
	sent   = 256 << 20         // bytes at a time
)

// received has a guest send to an address of the host's, and returns the seconds from its
// connection's first moment to the last byte.
func received(host string, run func(argv []string) error) (seconds float64, err error) {
	ln, err := net.Listen("tcp4", net.JoinHostPort(host, "0"))
	if err != nil {
		return 0, err
	}
	defer ln.Close()
	done := make(chan error, 1)
	go func() {
		done <- run([]string{sender, ln.Addr().String(), strconv.Itoa(sent)})
		ln.Close() // one that could not connect
	}()
	conn, err := ln.Accept()
	if err != nil {
		return 0, errors.Join(err, <-done)
	}
	defer conn.Close()
	seconds, err = timed(func() error {
		n, err := io.Copy(io.Discard, conn)
		if err == nil && n != sent {
			err = fmt.Errorf("%d bytes came of %d", n, sent)
		}
		return err
	})
	return seconds, errors.Join(err, <-done)
}

// handGuest configures the guest of a machine by hand, and copies a program into it.
func handGuest(ctx context.Context, channel, program string) (*guest.Agent, error) {
	agent, err := guest.Dial(ctx, func(ctx context.Context) (net.Conn, error) { return new(net.Dialer).DialContext(ctx, "unix", channel) })
	if err != nil {
		return nil, err
	}
	address := fmt.Sprintf("%s/%d", handSubnet.Addr().Next(), handSubnet.Bits())
	conf := proto.Configure{Hostname: "hand", Links: []proto.Link{{MAC: handMAC, Addresses: []string{address}}}}
	if err := agent.Call(ctx, proto.MethodConfigure, conf, nil); err != nil {
		return nil, err
	}
	return agent, session.Put(ctx, opener(agent), program, proto.Put{Path: sender}, nil)
}

func opener(agent *guest.Agent) session.Open {
	return func(ctx context.Context, h proto.Header) (session.Stream, error) { return agent.Open(ctx, h) }
}

func execByHand(ctx context.Context, agent *guest.Agent, argv []string) error {
	var out bytes.Buffer
	exit, err := session.Exec(ctx, opener(agent), proto.Exec{Argv: argv}, session.IO{Stderr: &out})
	if err == nil && exit.Code != 0 {
		err = fmt.Errorf("%q in a guest ended with %d: %s", argv, exit.Code, out.String())
	}
	return err
}
