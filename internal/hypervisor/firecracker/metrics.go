package firecracker

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"banger/internal/hypervisor"
)

// meter adds up what Firecracker counts. It writes a line of JSON a minute, and when it is told to, with
// what has come to its counts since the one before; lines that no daemon was there to read are lost.
type meter struct {
	pipe io.Closer
	done chan struct{} // closed when nothing more will come

	mu   sync.Mutex
	sum  hypervisor.Devices
	news chan struct{} // closed when a line comes, and then another: all who wait hear of it
}

// metrics is what is used of such a line.
type metrics struct {
	Block struct {
		Read      int64 `json:"read_bytes"`
		Write     int64 `json:"write_bytes"`
		Throttled int64 `json:"rate_limiter_throttled_events"`
		Events    int64 `json:"event_fails"`
		Requests  int64 `json:"execute_fails"`
		Invalid   int64 `json:"invalid_reqs_count"`
	} `json:"block"`
	Net struct {
		Read       int64 `json:"rx_bytes_count"`
		Write      int64 `json:"tx_bytes_count"`
		ReadFails  int64 `json:"rx_fails"`
		WriteFails int64 `json:"tx_fails"`
	} `json:"net"`
	UART struct {
		Dropped int64 `json:"rate_limiter_dropped_bytes"`
	} `json:"uart"`
	Seccomp struct {
		Faults int64 `json:"num_faults"`
	} `json:"seccomp"`
}

// maxMetrics bounds a line, in bytes: with three devices it has 15 KiB.
const maxMetrics = 256 << 10

// openMeter starts to read. A machine launched by a banger that did not ask for metrics has none: nil.
func openMeter(dir string) (*meter, error) {
	pipe, err := openPipe(dir, metricsPipe, unix.O_RDONLY)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	m := &meter{pipe: pipe, done: make(chan struct{}), news: make(chan struct{})}
	go func() {
		defer close(m.done)
		defer pipe.Close()
		lines := bufio.NewScanner(pipe)
		lines.Buffer(nil, maxMetrics)
		for lines.Scan() { // until the end, or a line that is too long: behind that is nothing of use
			m.add(lines.Bytes())
		}
	}()
	return m, nil
}

// add adds a line, unless it was cut: a pipe that nobody has read for long takes no more.
func (m *meter) add(line []byte) {
	var l metrics
	if json.Unmarshal(line, &l) != nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.sum.DiskReadBytes += l.Block.Read
	m.sum.DiskWriteBytes += l.Block.Write
	m.sum.DiskThrottled += l.Block.Throttled
	m.sum.DiskFailures += l.Block.Events + l.Block.Requests + l.Block.Invalid
	m.sum.NetReadBytes += l.Net.Read
	m.sum.NetWriteBytes += l.Net.Write
	m.sum.NetFailures += l.Net.ReadFails + l.Net.WriteFails
	m.sum.ConsoleDropped += l.UART.Dropped
	m.sum.ForbiddenCalls += l.Seccomp.Faults
	close(m.news)
	m.news = make(chan struct{})
}

// now has Firecracker tell what it has counted, and returns the sums.
func (m *meter) now(ctx context.Context, api *apiClient) (*hypervisor.Devices, error) {
	m.mu.Lock()
	news := m.news
	m.mu.Unlock()
	if err := api.do(ctx, put("/actions", action{"FlushMetrics"}), nil); err != nil {
		return nil, err
	}
	select {
	case <-news:
	case <-m.done:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	sum := m.sum
	return &sum, nil
}

func (m *meter) close() {
	m.pipe.Close()
	<-m.done
}

// balloonStats is what GET /balloon/statistics tells. What a driver has not told is 0.
type balloonStats struct {
	HeldMiB     int64 `json:"actual_mib"`
	Total       int64 `json:"total_memory"`
	Free        int64 `json:"free_memory"`
	Available   int64 `json:"available_memory"`
	Caches      int64 `json:"disk_caches"`
	SwappedIn   int64 `json:"swap_in"`
	SwappedOut  int64 `json:"swap_out"`
	MajorFaults int64 `json:"major_faults"`
	MinorFaults int64 `json:"minor_faults"`
}

// Report tells what Firecracker knows of the machine; see [hypervisor.Machine]. What it does not tell in
// time, or of a machine that has it not, is left out.
func (m *machine) Report(ctx context.Context) hypervisor.Report {
	var r hypervisor.Report
	var b balloonStats
	// Before its driver has told anything there is no total.
	if err := m.api.do(ctx, get("/balloon/statistics"), &b); err == nil && b.Total > 0 {
		r.Balloon = &hypervisor.Balloon{
			HeldBytes: b.HeldMiB << 20, TotalBytes: b.Total, FreeBytes: b.Free, AvailableBytes: b.Available, CachedBytes: b.Caches,
			SwappedIn: b.SwappedIn, SwappedOut: b.SwappedOut, MajorFaults: b.MajorFaults, MinorFaults: b.MinorFaults,
		}
	}
	if m.meter != nil {
		r.Devices, _ = m.meter.now(ctx, m.api)
	}
	return r
}

// Complaint is what Firecracker's log has last of errors.
func (m *machine) Complaint() string { return lastWords(m.Record().Dir) }
