package qemu

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// maxMessage bounds one message from QEMU, in bytes. Those that are asked for here have a
// few hundred.
const maxMessage = 1 << 20

// message is whatever QEMU says: a greeting, an answer, a refusal or an event.
type message struct {
	Greeting *json.RawMessage `json:"QMP"`
	ID       *uint64          `json:"id"`
	Return   json.RawMessage  `json:"return"`
	Error    *qmpError        `json:"error"`
	Event    string           `json:"event"`
	Data     json.RawMessage  `json:"data"`
}

// qmpError is QEMU's refusal of a command.
type qmpError struct {
	Class string `json:"class"`
	Desc  string `json:"desc"`
}

func (e *qmpError) Error() string { return e.Desc }

// parseMessage reads one line of the protocol.
func parseMessage(line []byte) (message, error) {
	var m message
	if err := json.Unmarshal(line, &m); err != nil {
		return message{}, fmt.Errorf("the monitor said what is no message: %w", err)
	}
	if m.Greeting == nil && m.Return == nil && m.Error == nil && m.Event == "" {
		return message{}, errors.New("the monitor said what is neither answer nor event")
	}
	return m, nil
}

// monitor is a client of QEMU's machine protocol (QMP).
type monitor struct {
	conn    net.Conn
	onEvent func(name string, data json.RawMessage)
	done    chan struct{} // closed when nothing more will come

	mu      sync.Mutex
	next    uint64
	waiting map[uint64]chan message
	err     error // why nothing more comes
}

// newMonitor greets the QEMU at the other end of conn, which it owns from now on, and
// waits as long as another client is being served. onEvent is called for each event in
// order and must not call the monitor.
func newMonitor(ctx context.Context, conn net.Conn, onEvent func(string, json.RawMessage)) (*monitor, error) {
	m := &monitor{conn: conn, onEvent: onEvent, done: make(chan struct{}), waiting: map[uint64]chan message{}}
	greeted := make(chan struct{})
	go m.read(greeted)
	select {
	case <-greeted:
	case <-m.done:
		m.Close()
		return nil, m.err
	case <-ctx.Done():
		m.Close()
		return nil, fmt.Errorf("QEMU's monitor does not answer: %w", ctx.Err())
	}
	if err := m.Execute(ctx, "qmp_capabilities", nil, nil); err != nil {
		m.Close()
		return nil, err
	}
	return m, nil
}

// read delivers what QEMU says until the connection ends.
func (m *monitor) read(greeted chan<- struct{}) {
	lines := bufio.NewScanner(m.conn)
	lines.Buffer(make([]byte, 4096), maxMessage)
	err := error(nil)
	for err == nil && lines.Scan() {
		var msg message
		if msg, err = parseMessage(lines.Bytes()); err != nil {
			break
		}
		switch {
		case msg.Event != "":
			m.onEvent(msg.Event, msg.Data)
		case msg.Greeting != nil:
			if greeted != nil {
				close(greeted)
				greeted = nil
			}
		default:
			m.deliver(msg)
		}
	}
	err = errors.Join(err, lines.Err())
	if err == nil {
		err = io.EOF
	}
	m.conn.Close()
	m.mu.Lock()
	m.err = fmt.Errorf("QEMU's monitor has gone: %w", err)
	m.mu.Unlock()
	close(m.done)
}

func (m *monitor) deliver(msg message) {
	if msg.ID == nil {
		return // an answer to no command of ours
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if answer, ok := m.waiting[*msg.ID]; ok {
		delete(m.waiting, *msg.ID)
		answer <- msg // has room for it
	}
}

// Execute runs a command and decodes its answer into result, unless that is nil. Its
// error is a *qmpError if QEMU refused.
func (m *monitor) Execute(ctx context.Context, command string, arguments, result any) error {
	return m.execute(ctx, command, arguments, result, nil)
}

// Give hands QEMU a file, which it knows by that name from then on.
func (m *monitor) Give(ctx context.Context, name string, f *os.File) error {
	return m.execute(ctx, "getfd", map[string]any{"fdname": name}, nil, f)
}

func (m *monitor) execute(ctx context.Context, command string, arguments, result any, file *os.File) error {
	answer := make(chan message, 1)
	m.mu.Lock()
	m.next++
	id := m.next
	m.waiting[id] = answer
	m.mu.Unlock()
	defer func() {
		m.mu.Lock()
		delete(m.waiting, id)
		m.mu.Unlock()
	}()

	request, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
		ID        uint64 `json:"id"`
	}{command, arguments, id})
	if err != nil {
		return fmt.Errorf("%s: %w", command, err)
	}
	// A few hundred bytes always have room in the socket, so this can't block for long. A
	// failure is that of the connection, which the reader reports.
	_ = m.write(append(request, '\n'), file)
	select {
	case msg := <-answer:
		if msg.Error != nil {
			return fmt.Errorf("%s: %w", command, msg.Error)
		}
		if result == nil {
			return nil
		}
		if err := json.Unmarshal(msg.Return, result); err != nil {
			return fmt.Errorf("%s: QEMU's answer: %w", command, err)
		}
		return nil
	case <-m.done:
		return fmt.Errorf("%s: %w", command, m.err)
	case <-ctx.Done():
		return fmt.Errorf("%s: %w", command, ctx.Err())
	}
}

func (m *monitor) write(line []byte, file *os.File) error {
	unixConn, ok := m.conn.(*net.UnixConn)
	if file == nil || !ok {
		_, err := m.conn.Write(line)
		return err
	}
	_, _, err := unixConn.WriteMsgUnix(line, unix.UnixRights(int(file.Fd())), nil)
	return err
}

// Done is closed once the connection has ended and every event has been delivered.
func (m *monitor) Done() <-chan struct{} { return m.done }

// Close hangs up and waits until no event will be delivered any more.
func (m *monitor) Close() {
	m.conn.Close()
	<-m.done
}
