package qemu

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
)

const greeting = `{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}}, "capabilities": ["oob"]}}` + "\r\n"

// fakeQEMU answers a monitor's commands with what answer returns, each after the id that
// the answer must carry has been put in the place of ID.
func fakeQEMU(t *testing.T, answer func(command string) string) net.Conn {
	t.Helper()
	ours, theirs := net.Pipe()
	t.Cleanup(func() { theirs.Close() })
	go func() {
		defer theirs.Close()
		io.WriteString(theirs, greeting)
		in := bufio.NewScanner(theirs)
		for in.Scan() {
			var request struct {
				Execute string
				ID      uint64
			}
			if json.Unmarshal(in.Bytes(), &request) != nil {
				return
			}
			reply := `{"return": {}, "id": ID}`
			if request.Execute != "qmp_capabilities" {
				reply = answer(request.Execute)
			}
			if reply == "" {
				return // hang up
			}
			io.WriteString(theirs, strings.ReplaceAll(reply, "ID", fmt.Sprint(request.ID))+"\r\n")
		}
	}()
	return ours
}

func TestMonitor(t *testing.T) {
	var events []string
	conn := fakeQEMU(t, func(command string) string {
		switch command {
		case "query-name":
			return `{"return": {"name": "banger-3f2a"}, "id": ID}`
		case "stop":
			return `{"event": "STOP", "timestamp": {"seconds": 1}}` + "\r\n" + `{"return": {}, "id": ID}`
		case "odd":
			return `{"return": {"name": "for another"}, "id": 4711}` + "\n" + `{"return": {"name": "without id"}}` + "\n" + `{"return": {"name": "mine"}, "id": ID}`
		case "refused":
			return `{"error": {"class": "GenericError", "desc": "no such thing"}, "id": ID}`
		case "mistyped":
			return `{"return": {"name": 7}, "id": ID}`
		}
		return ""
	})
	m, err := newMonitor(t.Context(), conn, func(name string, _ json.RawMessage) { events = append(events, name) })
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	var result struct{ Name string }
	for command, want := range map[string]string{"query-name": "banger-3f2a", "odd": "mine"} {
		if err := m.Execute(t.Context(), command, nil, &result); err != nil || result.Name != want {
			t.Errorf("%s: %q, %v", command, result.Name, err)
		}
	}
	if err := m.Execute(t.Context(), "stop", nil, nil); err != nil || len(events) != 1 || events[0] != "STOP" {
		t.Errorf("stop: %v, events %v", err, events)
	}
	err = m.Execute(t.Context(), "refused", nil, nil)
	if e, ok := errors.AsType[*qmpError](err); !ok || e.Class != "GenericError" || err.Error() != "refused: no such thing" {
		t.Errorf("a refusal: %v", err)
	}
	if err := m.Execute(t.Context(), "mistyped", nil, &result); err == nil {
		t.Error("an answer of the wrong type was taken")
	}
	if err := m.Execute(t.Context(), "die", nil, nil); !errors.Is(err, io.EOF) {
		t.Errorf("a command during which QEMU went: %v", err)
	}
	<-m.Done()
	if err := m.Execute(t.Context(), "query-name", nil, nil); !errors.Is(err, io.EOF) {
		t.Errorf("a command after QEMU went: %v", err)
	}
}

func TestMonitorIsBoundedByItsContext(t *testing.T) {
	silent, other := net.Pipe()
	defer other.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if m, err := newMonitor(ctx, silent, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("a QEMU that says nothing: %v, %v", m, err)
	}
	waiting := make(chan struct{})
	m, err := newMonitor(t.Context(), fakeQEMU(t, func(string) string { close(waiting); select {} }), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	ctx, cancel = context.WithCancel(t.Context())
	go func() { <-waiting; cancel() }()
	if err := m.Execute(ctx, "stop", nil, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("a command without an answer: %v", err)
	}
}

func TestMonitorRefusesWhatIsNoQEMU(t *testing.T) {
	for name, text := range map[string]string{
		"another protocol": "SSH-2.0-OpenSSH_9.2\r\n",
		"other JSON":       "[1, 2]\n",
		"an empty object":  "{}\n",
		"an endless line":  strings.Repeat("x", maxMessage+1),
		"nothing":          "",
	} {
		ours, theirs := net.Pipe()
		go func() { io.WriteString(theirs, text); theirs.Close() }()
		if m, err := newMonitor(t.Context(), ours, func(string, json.RawMessage) {}); err == nil {
			t.Errorf("%s was taken for a monitor: %v", name, m)
		}
	}
}

func FuzzParseMessage(f *testing.F) {
	for _, seed := range []string{
		greeting, `{"return": {}, "id": 1}`, `{"return": [], "id": -1}`, `{"error": {"class": "C", "desc": "d"}, "id": 2}`,
		`{"event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-shutdown"}}`, `{"id": 1}`, `null`, `{"QMP": null}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		m, err := parseMessage(line)
		if err == nil && m.Event == "" && m.Greeting == nil && m.Return == nil && m.Error == nil {
			t.Errorf("%q was taken for a message", line)
		}
	})
}
