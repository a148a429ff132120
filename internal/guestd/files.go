package guestd

import (
	"errors"
	"path/filepath"
	"strings"

	"banger/internal/guest/channel"
	"banger/internal/guest/proto"
	"banger/internal/guest/tree"
)

// guestPath makes a client's path absolute: a relative one starts at root's home.
func (a *Agent) guestPath(path string) (string, error) {
	if filepath.IsAbs(path) {
		return path, nil
	}
	root, err := a.lookup("")
	if err != nil {
		return "", err
	}
	abs := filepath.Join(root.home, path)
	if strings.HasSuffix(path, "/") {
		abs += "/" // it must be a directory
	}
	return abs, nil
}

// put unpacks a tree that belongs to root from then on.
func (a *Agent) put(s *channel.Stream, p proto.Put) error {
	path, err := a.guestPath(p.Path)
	if err != nil {
		return err
	}
	dst, err := tree.Target(path, p.Base)
	if err != nil {
		return err
	}
	return tree.Unpack(s, dst, tree.Options{SetID: true, Direct: true})
}

// get packs a tree. Where that fails midway the stream is reset, so that the client never
// takes a part for the whole.
func (a *Agent) get(s *channel.Stream, g proto.Get) {
	path, err := a.guestPath(g.Path)
	if err != nil {
		reply(s, nil, err)
		return
	}
	info, err := tree.Stat(path)
	if err != nil {
		reply(s, nil, err)
		return
	}
	base := filepath.Base(path)
	if base == "/" {
		base = "."
	}
	reply(s, proto.Got{Base: base, IsDir: info.IsDir, Bytes: info.Bytes}, nil)

	err = tree.Pack(s, path, true, nil)
	skipped, ok := errors.AsType[tree.Skipped](err)
	if err != nil && !ok {
		a.Log.Printf("copy %q to the host: %v", path, err)
		s.Reset()
		return
	}
	reply(s, proto.GotAll{Skipped: skipped}, nil)
}
