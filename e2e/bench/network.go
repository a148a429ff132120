package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"

	"github.com/vishvananda/netlink"
)

// netStartCost measures what a place on the bridge adds to `banger run`, while another VM is
// there, and what the same network device adds to the same machine started by hand: QEMU's
// part, the firmware's, the kernel's and its driver's.
func netStartCost(b *bench) (figures []Figure, err error) {
	if os.Geteuid() != 0 {
		fmt.Println("SKIP: net_start_cost: bridge networking takes root")
		return nil, nil
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
	run := func(net string) func() error {
		return func() error {
			_, err := b.banger("run", "--rm", "--image", "tiny", "--net", net, "--wait", "agent", "--", "true")
			return err
		}
	}
	ready := func(m *byHand) func() error {
		return func() error { return m.untilReady(func(*exec.Cmd) error { return nil }) }
	}
	const n = 15
	var medians []float64
	err = b.withVM(func(string) (err error) {
		medians, err = allInTurn(n, run("bridge"), run("none"), ready(bare.withTAP(hand.tap, handMAC)), ready(bare))
		return err
	})
	if err != nil {
		return nil, err
	}
	warm, err := netStartCostWarm()
	if err != nil {
		return nil, err
	}
	ours, theirs := (medians[0]-medians[1])*1000, (medians[2]-medians[3])*1000
	return []Figure{
		warm,
		{"net_start_cost", ours, "ms", n, theirs, fmt.Sprintf("%.3f s with --net bridge against %.3f s with --net none", medians[0], medians[1])},
		{"net_start_bare", theirs, "ms", n, 0, fmt.Sprintf("the same QEMU by hand until the agent's first byte: %.3f s with a TAP against %.3f s without", medians[2], medians[3])},
	}, nil
}

// netStartCostWarm is netStartCost where the guest finds its device as it left it.
func netStartCostWarm() (f Figure, err error) {
	err = withTemplates(func(b *bench) error {
		nets := []string{"bridge", "none"}
		var runs []func() error
		for _, net := range nets {
			if _, err := b.banger("template", "build", "tiny", "--net", net); err != nil {
				return err
			}
			runs = append(runs, func() error {
				_, err := b.banger("run", "--rm", "--warm", "--image", "tiny", "--net", net, "--", "true")
				return err
			})
		}
		const n = 25
		medians, err := allInTurn(n, runs...)
		if err != nil {
			return err
		}
		f = Figure{"net_start_cost_warm", (medians[0] - medians[1]) * 1000, "ms", n, 0,
			fmt.Sprintf("warm: %.3f s with --net bridge against %.3f s with --net none", medians[0], medians[1])}
		return nil
	})
	return f, err
}

// handBridge is a bridge and a TAP set up by hand, as anyone would for QEMU.
type handBridge struct {
	bridge *netlink.Bridge
	tap    *os.File
}

const handMAC = "52:54:00:12:34:56"

var handSubnet = netip.MustParsePrefix("10.78.0.1/24")

func newHandBridge() (h *handBridge, err error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "hand0"
	h = &handBridge{bridge: &netlink.Bridge{LinkAttrs: attrs}}
	if err := netlink.LinkAdd(h.bridge); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, h.close())
		}
	}()
	addr := &netlink.Addr{IPNet: &net.IPNet{IP: handSubnet.Addr().AsSlice(), Mask: net.CIDRMask(handSubnet.Bits(), 32)}}
	if err := errors.Join(netlink.AddrAdd(h.bridge, addr), netlink.LinkSetUp(h.bridge)); err != nil {
		return h, err
	}
	tap := &netlink.Tuntap{LinkAttrs: netlink.NewLinkAttrs(), Mode: netlink.TUNTAP_MODE_TAP, NonPersist: true, Queues: 1, Flags: netlink.TUNTAP_NO_PI | netlink.TUNTAP_VNET_HDR}
	tap.Name = "hand1"
	if err := netlink.LinkAdd(tap); err != nil {
		return h, err
	}
	h.tap = tap.Fds[0]
	return h, errors.Join(netlink.LinkSetMaster(tap, h.bridge), netlink.LinkSetUp(tap))
}

func (h *handBridge) close() error {
	var err error
	if h.tap != nil {
		err = h.tap.Close()
	}
	return errors.Join(err, netlink.LinkDel(h.bridge))
}
