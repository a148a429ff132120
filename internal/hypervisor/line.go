package hypervisor

import (
	"context"
	"net"
	"sync"
)

// Line is the way to a machine's control channel, on which one connection is open at a time.
type Line struct {
	// Held ends when the machine is let go of, and with it the connection.
	Held context.Context
	// Done is closed when the machine is gone; Gone is the error then.
	Done <-chan struct{}
	Gone func() error

	slot chan struct{} // holds a token while a connection is open
}

// NewLine makes a line to a machine; see [Line] for what it takes.
func NewLine(held context.Context, done <-chan struct{}, gone func() error) *Line {
	return &Line{Held: held, Done: done, Gone: gone, slot: make(chan struct{}, 1)}
}

// Connect waits for the connection before this one to close, and then connects with dial,
// whose context ends with ctx, with the machine, and when the machine is let go of.
func (l *Line) Connect(ctx context.Context, dial func(context.Context) (net.Conn, error)) (net.Conn, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(l.Held, func() { cancel(net.ErrClosed) })()
	go func() {
		select {
		case <-l.Done:
			cancel(l.Gone())
		case <-ctx.Done():
		}
	}()
	select {
	case l.slot <- struct{}{}:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	conn, err := dial(ctx)
	if err != nil {
		<-l.slot
		select {
		case <-l.Done: // which is why
			return nil, l.Gone()
		default:
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, err
	}
	c := &lineConn{Conn: conn, free: sync.OnceFunc(func() { <-l.slot })}
	c.unhook = context.AfterFunc(l.Held, func() { c.Close() })
	return c, nil
}

// lineConn frees the line for the next connection when it is closed.
type lineConn struct {
	net.Conn
	free   func()
	unhook func() bool
}

func (c *lineConn) Close() error {
	c.unhook()
	err := c.Conn.Close()
	c.free()
	return err
}
