package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	mdns "github.com/miekg/dns"
	"golang.org/x/net/ipv4"

	"banger/internal/dns"
)

const dnsNames = 200

// dnsRecords are the names that both servers know.
func dnsRecords() (all []dns.Record) {
	addr := netip.MustParseAddr("10.77.0.1")
	for i := range dnsNames {
		addr = addr.Next()
		all = append(all, dns.Record{Name: fmt.Sprintf("vm-%d", i), Addr: addr})
	}
	return all
}

// dnsQuestions are what is asked, in this order again and again: mostly addresses, some names
// that do not exist, some of addresses. Each has its place in the list as its id.
func dnsQuestions() (all [][]byte, err error) {
	for i, r := range dnsRecords() {
		m := new(mdns.Msg).SetQuestion(r.Name+".vm.", mdns.TypeA)
		switch i % 10 {
		case 3:
			m.SetQuestion("no-"+r.Name+".vm.", mdns.TypeA)
		case 7:
			o := r.Addr.As4()
			m.SetQuestion(fmt.Sprintf("%d.%d.%d.%d.in-addr.arpa.", o[3], o[2], o[1], o[0]), mdns.TypePTR)
		}
		m.Id = uint16(i)
		m.SetEdns0(1232, false)
		wire, err := m.Pack()
		if err != nil {
			return nil, err
		}
		all = append(all, wire)
	}
	return all, nil
}

// serveDNS is this program as a name server of banger's: it says where it serves, and serves
// until its standard input ends.
func serveDNS() error {
	s := dns.NewServer(noResolvers{})
	s.Set(netip.MustParsePrefix("10.77.0.0/24"), dnsRecords())
	l, err := s.ServeHost(netip.MustParseAddrPort("127.0.0.1:0"))
	if err != nil {
		return err
	}
	fmt.Println(l.Addr())
	_, err = os.Stdin.Read(make([]byte, 1))
	if err != nil && err.Error() == "EOF" {
		err = nil
	}
	return errors.Join(err, l.Close())
}

type noResolvers struct{}

func (noResolvers) Servers() []netip.AddrPort { return nil }

// child starts a program that lives no longer than this one.
func child(c *exec.Cmd) (stop func(), err error) {
	c.Stderr = os.Stderr
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := c.Start(); err != nil {
		return nil, err
	}
	return func() {
		c.Process.Kill()
		c.Wait() // says only that it was killed
	}, nil
}

// ourDNS starts banger's server in a process of its own, as dnsmasq is in one.
func ourDNS() (addr string, stop func(), err error) {
	exe, err := os.Executable()
	if err != nil {
		return "", nil, err
	}
	c := exec.Command(exe, "-serve-dns")
	keep, err := c.StdinPipe() // open as long as we live
	if err != nil {
		return "", nil, err
	}
	out, err := c.StdoutPipe()
	if err != nil {
		return "", nil, err
	}
	end, err := child(c)
	if err != nil {
		return "", nil, err
	}
	stop = func() { keep.Close(); end() }
	line := make([]byte, 64)
	n, err := out.Read(line)
	return strings.TrimSpace(string(line[:n])), stop, err
}

// dnsmasq starts one that knows the same records.
func dnsmasq(b *bench) (addr string, stop func(), err error) {
	hosts := filepath.Join(b.scratch, "hosts")
	var text bytes.Buffer
	for _, r := range dnsRecords() {
		fmt.Fprintf(&text, "%s %s.vm\n", r.Addr, r.Name)
	}
	if err := os.WriteFile(hosts, text.Bytes(), 0o644); err != nil {
		return "", nil, err
	}
	free, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	addr = free.LocalAddr().String()
	free.Close()
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		return "", nil, err
	}
	c := exec.Command("dnsmasq", "--no-daemon", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--user=root", "--group=root",
		"--addn-hosts="+hosts, "--local=/vm/", "--local=/77.10.in-addr.arpa/", "--local-ttl=5", "--cache-size=1000",
		"--listen-address=127.0.0.1", "--bind-interfaces", "--port="+port, "--pid-file=")
	if stop, err = child(c); err != nil {
		return "", nil, err
	}
	return addr, stop, answering(addr)
}

// answering returns once a server answers.
func answering(addr string) error {
	for begin := time.Now(); time.Since(begin) < 5*time.Second; {
		c := mdns.Client{Timeout: 100 * time.Millisecond}
		if _, _, err := c.Exchange(new(mdns.Msg).SetQuestion("vm-0.vm.", mdns.TypeA), addr); err == nil {
			return nil
		}
	}
	return fmt.Errorf("the name server on %s does not answer", addr)
}

// dnsFigures measures banger's name server beside dnsmasq.
func dnsFigures(b *bench) (figures []Figure, err error) {
	questions, err := dnsQuestions()
	if err != nil {
		return nil, err
	}
	ours, stop, err := ourDNS()
	if err != nil {
		return nil, err
	}
	defer stop()
	theirs, stopTheirs, err := dnsmasq(b)
	if err != nil {
		return nil, err
	}
	defer stopTheirs()
	const rounds, questionsARound = 7, 100_000
	a, c, err := inTurn(rounds, func() error { return flood(ours, questions, questionsARound) },
		func() error { return flood(theirs, questions, questionsARound) })
	if err != nil {
		return nil, err
	}
	const paced = 1000
	var p99, theirP99 []float64
	lost := 0
	for range rounds {
		latency, missing, err := pace(ours, questions, paced, time.Millisecond)
		if err != nil {
			return nil, err
		}
		p99, lost = append(p99, percentile(latency, 99)), lost+missing
		if latency, _, err = pace(theirs, questions, paced, time.Millisecond); err != nil {
			return nil, err
		}
		theirP99 = append(theirP99, percentile(latency, 99))
	}
	_, lostFast, err := pace(ours, questions, 50_000, 100*time.Microsecond)
	if err != nil {
		return nil, err
	}
	return []Figure{
		{"dns_throughput", c / a, "ratio", rounds, 1, fmt.Sprintf("%.0f queries/s against dnsmasq's %.0f", questionsARound/a, questionsARound/c)},
		{"dns_p99", median(p99), "ms", rounds, median(theirP99), fmt.Sprintf("over %d queries at 1,000/s, %d lost; the baseline is dnsmasq's", paced, lost)},
		{"dns_lost", float64(lostFast), "of 50000", 1, 0, "unanswered at 10,000 queries/s"},
	}, nil
}

func percentile(all []time.Duration, p int) float64 {
	slices.Sort(all)
	return all[(len(all)*p+99)/100-1].Seconds() * 1000
}

// window is how many questions are on their way at a time in a flood: enough to keep a server
// busy, and few enough for any socket's queue.
const window = 64

// flood asks n questions as fast as they are answered, many with each call of the kernel, so
// that the asker is not what is measured.
func flood(addr string, questions [][]byte, n int) error {
	conn, err := net.Dial("udp4", addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		return err
	}
	p := ipv4.NewPacketConn(conn.(net.PacketConn))
	in, out := make([]ipv4.Message, window), make([]ipv4.Message, 0, window)
	for i := range in {
		in[i].Buffers = [][]byte{make([]byte, 1500)}
	}
	sent, answered := 0, 0
	for answered < n {
		out = out[:0]
		for ; sent < n && sent-answered < window; sent++ {
			out = append(out, ipv4.Message{Buffers: [][]byte{questions[sent%len(questions)]}})
		}
		for rest := out; len(rest) > 0; {
			done, err := p.WriteBatch(rest, 0)
			if err != nil {
				return err
			}
			rest = rest[done:]
		}
		got, err := p.ReadBatch(in, 0)
		if err != nil {
			return fmt.Errorf("after %d answers: %w", answered, err)
		}
		answered += got
	}
	return nil
}

// pace asks n questions, one in each interval whatever becomes of the earlier ones, and
// returns how long each answer took and how many never came.
func pace(addr string, questions [][]byte, n int, interval time.Duration) (took []time.Duration, lost int, err error) {
	conn, err := net.Dial("udp4", addr)
	if err != nil {
		return nil, 0, err
	}
	defer conn.Close()
	if err := conn.(*net.UDPConn).SetReadBuffer(1 << 20); err != nil {
		return nil, 0, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	sent := make([]time.Time, n)
	received := make(chan map[int]time.Time, 1)
	go func() {
		at := map[int]time.Time{}
		buf := make([]byte, 1500)
		for len(at) < n {
			if _, err := conn.Read(buf); err != nil {
				break
			}
			at[int(buf[0])<<8|int(buf[1])] = time.Now()
		}
		received <- at
		cancel()
	}()
	begin := time.Now()
	for i := range n {
		time.Sleep(time.Until(begin.Add(time.Duration(i) * interval)))
		q := slices.Clone(questions[i%len(questions)])
		q[0], q[1] = byte(i>>8), byte(i)
		sent[i] = time.Now()
		if _, err := conn.Write(q); err != nil {
			return nil, 0, err
		}
	}
	select {
	case <-ctx.Done():
	case <-time.After(time.Second): // what comes later than this is lost
		conn.SetReadDeadline(time.Now())
	}
	for i, at := range <-received {
		took = append(took, at.Sub(sent[i]))
	}
	if len(took) == 0 {
		return nil, n, errors.New("no question was answered")
	}
	return took, n - len(took), nil
}
