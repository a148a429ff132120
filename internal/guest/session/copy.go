package session

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"

	"banger/internal/guest/proto"
	"banger/internal/guest/tree"
)

// Put copies the file or tree at local into the guest. p.Path is the destination; p.Base
// is filled in here, after the rules of cp: a local path that ends in "/." copies the
// contents. progress, unless nil, is told of bytes of file contents sent, of total.
//
// A failure in the guest is a *proto.Error. An error of type tree.Skipped means that all
// else was copied.
func Put(ctx context.Context, open Open, local string, p proto.Put, progress func(done, total int64)) error {
	info, err := tree.Stat(local)
	if err != nil {
		return err
	}
	if p.Base, err = localBase(local); err != nil {
		return err
	}
	if p.Base == "." && !info.IsDir {
		return fmt.Errorf("%s: not a directory", local)
	}
	s, err := open(ctx, proto.Header{Service: proto.ServicePut, Put: &p})
	if err != nil {
		return err
	}
	defer s.Close()
	defer context.AfterFunc(ctx, func() { s.Close() })()

	sendErr := tree.Pack(s, local, false, counter(progress, info.Bytes))
	_, skipped := errors.AsType[tree.Skipped](sendErr)
	if sendErr == nil || skipped {
		s.CloseWrite()
	}
	err = readReply(ctx, s, nil)
	// Where sending failed the agent's reply, if there is one, knows better why.
	if _, fromAgent := errors.AsType[*proto.Error](err); fromAgent || ctx.Err() != nil {
		return err
	}
	if err != nil && (sendErr == nil || skipped) {
		return err
	}
	return sendErr
}

// localBase gives the name that a copy of local has where it goes inside a directory.
func localBase(local string) (string, error) {
	if strings.HasSuffix(local, "/.") || local == "." || local == "/" {
		return ".", nil
	}
	abs, err := filepath.Abs(local)
	if err != nil {
		return "", err
	}
	return filepath.Base(abs), nil
}

// Get copies the file or tree at remote, a path in the guest, to local, after the same
// rules. Nothing the guest sends is written outside that destination, and set-user-id
// bits are dropped. Errors are those of Put.
func Get(ctx context.Context, open Open, remote, local string, progress func(done, total int64)) error {
	s, err := open(ctx, proto.Header{Service: proto.ServiceGet, Get: &proto.Get{Path: remote}})
	if err != nil {
		return err
	}
	defer s.Close()
	defer context.AfterFunc(ctx, func() { s.Close() })()

	in := bufio.NewReaderSize(s, 64<<10)
	var got proto.Got
	if err := readReply(ctx, in, result(&got)); err != nil {
		return err
	}
	dst, err := tree.Target(local, remoteBase(remote, got.Base))
	if err != nil {
		return err
	}
	if strings.HasSuffix(remote, "/.") && !got.IsDir {
		return fmt.Errorf("%s: not a directory", remote)
	}
	if fi, err := os.Stat(dst); err == nil && fi.IsDir() != got.IsDir {
		return fmt.Errorf("%s: a directory and a file can't replace each other", dst)
	}
	if err := tree.Unpack(in, dst, tree.Options{Progress: counter(progress, got.Bytes)}); err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return err
	}
	var all proto.GotAll
	if err := readReply(ctx, in, result(&all)); err != nil {
		return err
	}
	if len(all.Skipped) > 0 {
		return tree.Skipped(all.Skipped)
	}
	return nil
}

// remoteBase prefers what the user typed: only where that has no last name, as in "..",
// is the guest's word taken, and tree.Target refuses one that is no plain name.
func remoteBase(remote, told string) string {
	if strings.HasSuffix(remote, "/.") {
		return "."
	}
	switch base := path.Base(path.Clean(remote)); base {
	case "/", ".", "..":
		return told
	default:
		return base
	}
}

func result(v any) func(proto.Reply) error {
	return func(r proto.Reply) error {
		if err := json.Unmarshal(r.Result, v); err != nil {
			return fmt.Errorf("decode the guest's reply: %w", err)
		}
		return nil
	}
}

// counter turns sizes of parts into a running total.
func counter(progress func(done, total int64), total int64) func(int64) {
	if progress == nil {
		return nil
	}
	var done int64
	return func(n int64) {
		done += n
		progress(done, total)
	}
}
