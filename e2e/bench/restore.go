package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/guest"
	"banger/internal/guest/proto"
)

// warmOverhead measures a warm start, from the command to the answer of a guest that has its
// identity, against a script that restores the same template to the same answer: QEMU with the
// same arguments, its state, and the message that gives an identity.
func warmOverhead(*bench) (figures []Figure, err error) {
	err = withTemplates(func(b *bench) error {
		figures, err = restoredByHand(b)
		return err
	})
	return figures, err
}

func restoredByHand(b *bench) ([]Figure, error) {
	const n, image = 10, "tiny"
	flags := []string{"--image", image, "--net", "none", "--backend", "qemu"}
	if _, err := b.banger(append([]string{"template", "build"}, append(flags[2:], image)...)...); err != nil {
		return nil, err
	}
	m, err := b.machineByHand("--warm", "--unjailed")
	if err != nil {
		return nil, err
	}
	if _, err := b.banger(append([]string{"create", "--name", "fresh"}, flags...)...); err != nil {
		return nil, err
	}
	fresh, err := b.vm("fresh")
	if err != nil {
		return nil, err
	}
	m.overlay = filepath.Join(fresh.Directory, "root.qcow2")
	template, err := b.templateOf(image, "none")
	if err != nil {
		return nil, err
	}
	var ours, hand []float64
	for range n {
		s, err := timed(func() error {
			_, err := b.banger(append([]string{"run", "-d", "--warm", "--name", "warm"}, flags...)...)
			return err
		})
		if err != nil {
			return nil, err
		}
		ours = append(ours, s)
		if _, err := b.banger("rm", "-f", "warm"); err != nil {
			return nil, err
		}
		begin := time.Now()
		if err := m.run(func(_ *exec.Cmd, channel string) error {
			if err := m.restore(filepath.Join(template, "state"), channel); err != nil {
				return err
			}
			hand = append(hand, time.Since(begin).Seconds())
			return nil
		}); err != nil {
			return nil, fmt.Errorf("restore by hand: %w", err)
		}
	}
	o, h := median(ours), median(hand)
	return []Figure{{"warm_overhead", o / h, "ratio", n, 1, fmt.Sprintf("%.0f ms from the command to a guest with its identity, %.0f ms by hand", o*1000, h*1000)}}, nil
}

// templateOf returns the directory of the template of an image for VMs with that network.
func (b *bench) templateOf(image, net string) (string, error) {
	ts, err := b.client.Templates(context.Background())
	for _, t := range ts {
		if t.Image == image && t.Net == net {
			return t.Path, nil
		}
	}
	return "", fmt.Errorf("there is no template of %s with network %s: %w", image, net, err)
}

// restore has a machine that was started without a state go on from one, and gives its guest an
// identity.
func (m *byHand) restore(state, channel string) error {
	f, err := os.Open(state)
	if err != nil {
		return err
	}
	defer f.Close()
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: filepath.Join(m.dir, "monitor.hand"), Net: "unix"})
	if err != nil {
		return err
	}
	defer conn.Close()
	said := bufio.NewScanner(conn)
	for _, step := range []struct {
		line string
		fd   []byte
		done func(qmpLine) bool
	}{
		{`{"execute":"qmp_capabilities"}`, nil, answered},
		{`{"execute":"migrate-set-capabilities","arguments":{"capabilities":[{"capability":"x-ignore-shared","state":true},{"capability":"events","state":true}]}}`, nil, answered},
		{`{"execute":"getfd","arguments":{"fdname":"state"}}`, unix.UnixRights(int(f.Fd())), answered},
		{`{"execute":"migrate-incoming","arguments":{"uri":"fd:state"}}`, nil, func(l qmpLine) bool { return l.Event == "MIGRATION" && l.Data.Status == "completed" }},
		{`{"execute":"cont"}`, nil, answered},
	} {
		if _, _, err := conn.WriteMsgUnix([]byte(step.line+"\n"), step.fd, nil); err != nil {
			return err
		}
		if err := await(said, step.done); err != nil {
			return fmt.Errorf("%s: %w", step.line, err)
		}
	}
	return identify(channel)
}

// qmpLine is what QEMU says.
type qmpLine struct {
	Return *json.RawMessage
	Error  *json.RawMessage
	Event  string
	Data   struct{ Status string }
}

func answered(l qmpLine) bool { return l.Return != nil }

func await(said *bufio.Scanner, done func(qmpLine) bool) error {
	for said.Scan() {
		var l qmpLine
		if err := json.Unmarshal(said.Bytes(), &l); err != nil {
			return err
		}
		if l.Error != nil {
			return fmt.Errorf("QEMU refuses: %s", *l.Error)
		}
		if done(l) {
			return nil
		}
	}
	return fmt.Errorf("QEMU has gone: %w", said.Err())
}

// identify waits for the guest at a channel, and for its answer to the message that gives it an
// identity.
func identify(channel string) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	conn, err := net.Dial("unix", channel)
	if err != nil {
		return err
	}
	g, err := guest.Connect(ctx, conn)
	if err != nil {
		return err
	}
	defer g.Close()
	return g.Call(ctx, proto.MethodConfigure, proto.Configure{
		VMID: "by-hand", Hostname: "by-hand", MachineID: "0123456789abcdef0123456789abcdef", UnixNanos: time.Now().UnixNano(),
		Entropy: make([]byte, 64), Clone: &proto.Clone{BootID: "5f0c7a86-33ad-4c1c-9d4b-1d0f8e6f3a11", Shed: true},
	}, nil)
}
