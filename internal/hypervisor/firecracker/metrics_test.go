package firecracker

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/hypervisor"
)

// What Firecracker counts from flush to flush is added up, by each daemon from its first; what its
// balloon tells is passed on.
func TestReport(t *testing.T) {
	stats := answer{Status: http.StatusOK, Body: `{"target_pages":0,"actual_pages":512,"target_mib":0,"actual_mib":2,"swap_in":1,"swap_out":2,"major_faults":3,"minor_faults":4,
		"free_memory":100,"total_memory":1000,"available_memory":500,"disk_caches":50,"hugetlb_allocations":0,"hugetlb_failures":0}`}
	h, spec := fake(t, script{Answers: map[string]answer{"GET /balloon/statistics": stats}}), goodSpec(t)
	m, err := launch(t, h, spec)
	if err != nil {
		t.Fatal(err)
	}
	want := hypervisor.Devices{DiskReadBytes: 5, DiskWriteBytes: 7, DiskThrottled: 2, DiskFailures: 1, NetReadBytes: 3, NetWriteBytes: 4, ForbiddenCalls: 1}
	for n := range int64(2) {
		r := m.Report(t.Context())
		sum := want
		for _, x := range []*int64{&sum.DiskReadBytes, &sum.DiskWriteBytes, &sum.DiskThrottled, &sum.DiskFailures, &sum.NetReadBytes, &sum.NetWriteBytes, &sum.ForbiddenCalls} {
			*x *= n + 1
		}
		if r.Devices == nil || *r.Devices != sum {
			t.Errorf("it counts %+v, not %+v", r.Devices, sum)
		}
		if b := r.Balloon; b == nil || *b != (hypervisor.Balloon{HeldBytes: 2 << 20, TotalBytes: 1000, FreeBytes: 100, AvailableBytes: 500, CachedBytes: 50, SwappedIn: 1, SwappedOut: 2, MajorFaults: 3, MinorFaults: 4}) {
			t.Errorf("its balloon tells %+v", b)
		}
	}
	// While no daemon reads it is not held up, nor ended by what it writes.
	m.Close()
	blocked := &machine{api: m.(*machine).api}
	for range 1000 {
		if err := blocked.api.do(t.Context(), put("/actions", action{"FlushMetrics"}), nil); err != nil {
			t.Fatal(err)
		}
	}
	if m, err = h.Adopt(t.Context(), m.Record()); err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if r := m.Report(t.Context()); r.Devices == nil || r.Devices.DiskReadBytes == 0 {
		t.Errorf("another daemon counts %+v", r.Devices)
	}
}

// A machine tells nothing of what it has not, or what it does not tell in time, and its last complaint is
// what a user sees of a disk that can't be written to.
func TestReportOfWhatIsNotThere(t *testing.T) {
	for name, a := range map[string]answer{
		"no balloon":     {Status: http.StatusBadRequest, Body: `{"fault_message":"No balloon device found."}`},
		"no driver":      {Status: http.StatusOK, Body: `{"target_pages":0,"actual_pages":0,"target_mib":0,"actual_mib":0}`},
		"not to be read": {Status: http.StatusOK, Body: `{"total_memory":"\u001b[31m"}`},
	} {
		spec := goodSpec(t)
		m, err := launch(t, fake(t, script{Says: "2026-11-24T12:00:00.0 [banger-x:fc_vmm:ERROR] Failed to write to disk: \x1b[31mNo space left\n", Answers: map[string]answer{
			"GET /balloon/statistics": a, "PUT /actions": {Status: http.StatusNoContent}}}), spec) // nothing is flushed
		if err != nil {
			t.Fatal(err)
		}
		awaitText(t, filepath.Join(spec.Dir, logFile), "No space left")
		ctx, cancel := context.WithTimeout(t.Context(), 50e6)
		r := m.Report(ctx)
		cancel()
		if r.Balloon != nil || r.Devices != nil || !strings.HasSuffix(m.Complaint(), "No space left") || strings.ContainsRune(m.Complaint(), 0x1b) {
			t.Errorf("%s: %+v, %q", name, r, m.Complaint())
		}
	}
}

// A machine that was launched by a banger that did not ask for metrics is adopted all the same.
func TestAdoptWithoutMetrics(t *testing.T) {
	h, spec := fake(t, script{}), goodSpec(t)
	m, err := launch(t, h, spec)
	if err != nil {
		t.Fatal(err)
	}
	m.Close()
	if err := os.Remove(filepath.Join(spec.Dir, metricsPipe)); err != nil {
		t.Fatal(err)
	}
	if m, err = h.Adopt(t.Context(), m.Record()); err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if r := m.Report(t.Context()); r.Devices != nil {
		t.Errorf("it counts %+v", r.Devices)
	}
	echo(t, m)
}

// Two who ask at once both hear of a line that comes.
func TestTwoAskAtOnce(t *testing.T) {
	dir := t.TempDir()
	if err := makePipe(dir, metricsPipe); err != nil {
		t.Fatal(err)
	}
	w, err := openPipe(dir, metricsPipe, unix.O_RDWR)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	m, err := openMeter(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer m.close()
	var asked, told sync.WaitGroup
	asked.Add(2)
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		asked.Done()
		asked.Wait()
	}))
	defer server.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for range 2 {
		told.Go(func() {
			api := newClient(func(ctx context.Context) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, "tcp", server.Listener.Addr().String())
			})
			defer api.close()
			if d, err := m.now(ctx, api); err != nil || d.DiskReadBytes != 5 {
				t.Errorf("it counts %+v, %v", d, err)
			}
		})
	}
	asked.Wait()
	if _, err := w.WriteString(`{"block":{"read_bytes":5}}` + "\n"); err != nil {
		t.Fatal(err)
	}
	told.Wait()
}

// What a machine that was taken over writes takes no memory and holds nothing up.
func TestMeterIsBounded(t *testing.T) {
	dir := t.TempDir()
	if err := makePipe(dir, metricsPipe); err != nil {
		t.Fatal(err)
	}
	w, err := openPipe(dir, metricsPipe, unix.O_RDWR)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	m, err := openMeter(dir)
	if err != nil {
		t.Fatal(err)
	}
	for written := 0; written <= maxMetrics; written += 64 << 10 { // each waits until there is room: until it is read
		if _, err := w.Write(make([]byte, 64<<10)); err != nil {
			t.Fatal(err)
		}
	}
	<-m.done // nobody waits for what it tells behind that
	m.close()
}

// A log of which the end is read has no complaint where that begins within a line.
func TestNoComplaintOfHalfALine(t *testing.T) {
	dir := t.TempDir()
	for _, n := range []int{1, 8 << 10, 8<<10 + 1, 20 << 10} {
		text := "2026-11-24T12:00:00.0 [banger-x:fc_api:INFO] The API server received " + strings.Repeat("x", n) + "\n"
		if err := os.WriteFile(filepath.Join(dir, logFile), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := lastWords(dir); got != "" {
			t.Errorf("of a line of %d bytes the words are %.80q", len(text), got)
		}
	}
}
