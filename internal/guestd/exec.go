package guestd

import (
	"bytes"
	"errors"
	"slices"

	"banger/internal/errs"
	"banger/internal/guest/channel"
	"banger/internal/guest/proto"
)

// exec serves an exec stream: it starts the command, passes on signals and sizes, and
// tells how it ended.
func (a *Agent) exec(s *channel.Stream, x proto.Exec) {
	streams, err := a.takeStdio(x)
	if err != nil {
		proto.WriteFrame(s, proto.ExecEvent{Error: protoError(err)})
		return
	}
	j, err := a.startExec(x, streams)
	if err != nil {
		event := proto.ExecEvent{Error: protoError(err)}
		if c, ok := errors.AsType[*cantRun](err); ok {
			event = proto.ExecEvent{Exit: &c.Exit}
		}
		proto.WriteFrame(s, event)
		closeStreams(streams)
		return
	}
	if x.Detach { // started is all there is to tell
		proto.WriteFrame(s, proto.ExecEvent{Exit: &proto.Exit{}})
		j.wait()
		return
	}
	go func() {
		obey(j, s)
		// The client has gone, or the command has ended: nobody reads its streams.
		j.hangup()
		closeStreams(streams)
	}()
	exit := j.wait()
	proto.WriteFrame(s, proto.ExecEvent{Exit: &exit})
	j.flush()
	closeStreams(streams)
}

func (a *Agent) takeStdio(x proto.Exec) (map[int]*channel.Stream, error) {
	for i, fd := range x.FDs {
		if fd < 0 || fd > 2 || (x.TTY && fd != 0) || x.Detach || slices.Contains(x.FDs[:i], fd) {
			return nil, errs.New(errs.Invalid, "descriptors %v can't be connected", x.FDs)
		}
	}
	return a.stdio.take(x.Session, x.FDs)
}

func (a *Agent) startExec(x proto.Exec, streams map[int]*channel.Stream) (*job, error) {
	user, err := a.runAs(x.User)
	if err != nil {
		return nil, err
	}
	var io stdio
	if s, ok := streams[0]; ok {
		io.in = s
		if x.TTY {
			io.out = s
		}
	}
	if s, ok := streams[1]; ok {
		io.out = s
	}
	if s, ok := streams[2]; ok {
		io.err = s
	}
	return a.start(spec{argv: x.Argv, env: x.Env, dir: x.Dir, user: user, tty: x.TTY, size: x.Size, detach: x.Detach}, io)
}

// obey carries out the client's frames until the stream ends.
func obey(j *job, s *channel.Stream) {
	for {
		var in proto.ExecInput
		if proto.ReadFrame(s, &in) != nil {
			return
		}
		if in.Resize != nil {
			j.resize(*in.Resize)
		}
		if in.Signal != "" {
			j.signal(in.Signal)
		}
	}
}

func closeStreams(streams map[int]*channel.Stream) {
	for _, s := range streams {
		s.Close()
	}
}

// rehearse does once what a clone is to do first: it runs commands that do nothing, so that what
// most commands read from the disk is in memory, and has what is said on the channel go through
// its codec, which keeps what it has found out of each type. Where the code for it is translated it
// takes a fraction of the time from then on. An image need not have such commands.
func (a *Agent) rehearse() error {
	user, err := a.lookup("")
	if err != nil {
		return err
	}
	for _, argv := range [][]string{{"sh", "-c", ":"}, {"true"}} {
		j, err := a.start(spec{argv: argv, user: user}, stdio{})
		if _, cant := errors.AsType[*cantRun](err); cant {
			continue
		}
		if err != nil {
			return err
		}
		j.wait()
		j.flush()
	}
	var b bytes.Buffer
	return errors.Join(
		proto.WriteFrame(&b, proto.Header{Exec: &proto.Exec{Argv: []string{""}}, Stdio: &proto.Stdio{}}), proto.ReadFrame(&b, new(proto.Header)),
		proto.WriteFrame(&b, proto.Configure{Links: []proto.Link{{}}, Clone: &proto.Clone{}}), proto.ReadFrame(&b, new(proto.Configure)),
		proto.WriteFrame(&b, proto.Configured{}), proto.WriteFrame(&b, proto.ExecEvent{Exit: &proto.Exit{}}))
}
