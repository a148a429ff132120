package runtimedir

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"strings"

	"aead.dev/minisign"
	"golang.org/x/sys/unix"

	"banger/internal/errs"
)

// Wanted is a packed bundle to be fetched.
type Wanted struct {
	Archive // its SHA256 may be empty: then it is that in the file URL.sha256
	// Key is the minisign public key that the archive must be signed with, in the file
	// URL.minisig; empty if none is asked for.
	Key string
	Terms
}

// Sizes of the files beside an archive, and of one whose size nobody tells, in bytes.
const (
	maxBeside  = 4 << 10
	maxArchive = 64 << 30
)

// Fetch puts the packed bundle that is wanted in the place of the one in dir. It is checked
// before it can be seen there; a download that was cut short is gone on with.
func (f *Fetcher) Fetch(ctx context.Context, dir string, want Wanted, hold Holder, progress Progress) (err error) {
	if want.URL == "" {
		return errs.New(errs.Invalid, "it is not known where to fetch a runtime bundle from").
			Try("give --url, or --manifest with an [archive] in it, or set runtime_url in the config file")
	}
	signature, err := f.credentials(ctx, &want)
	if err != nil {
		return err
	}
	in, err := begin(dir, want.Terms)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, in.end()) }()
	next, err := f.receive(ctx, in, want, signature, progress)
	if err != nil {
		return err
	}
	progress("installing", 0, 0)
	if err := in.commit(next, hold); err != nil {
		return err
	}
	return removeParts(in.dir, "")
}

// credentials finds out what the archive must be, and checks the key.
func (f *Fetcher) credentials(ctx context.Context, want *Wanted) (signature []byte, err error) {
	fail := func(what string, err error) error {
		return errs.New(errs.Unavailable, "%s of the bundle can't be fetched from %s", what, want.URL).Because(err).
			Try("`banger runtime package` writes both beside the archive: .sha256, and given a key .minisig")
	}
	if want.Key != "" {
		var key minisign.PublicKey
		if err := key.UnmarshalText([]byte(want.Key)); err != nil {
			return nil, errs.New(errs.Invalid, "%q is no public key of minisign", want.Key).Because(err).Try("runtime_key in the config file is the second line of a .pub file")
		}
		if signature, err = f.small(ctx, want.URL+".minisig", maxBeside); err != nil {
			return nil, fail("the signature", err)
		}
	}
	if want.SHA256 == "" {
		b, err := f.small(ctx, want.URL+".sha256", maxBeside)
		if err != nil {
			return nil, fail("the checksum", err)
		}
		want.SHA256, _, _ = strings.Cut(string(b), " ")
		want.SHA256 = strings.TrimSpace(want.SHA256)
	}
	if !digestPattern.MatchString(want.SHA256) {
		return nil, errs.New(errs.Invalid, "%q is no SHA-256 of a bundle", want.SHA256)
	}
	return signature, nil
}

// receive downloads the archive into a part and unpacks it meanwhile.
func (f *Fetcher) receive(ctx context.Context, in *installation, want Wanted, signature []byte, progress Progress) (Record, error) {
	name := in.dir + "." + want.SHA256[:16] + partSuffix
	if err := removeParts(in.dir, name); err != nil {
		return Record{}, err
	}
	part, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR|os.O_APPEND|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return Record{}, unwritable(in.dir, err)
	}
	defer part.Close()
	info, err := part.Stat()
	if err != nil {
		return Record{}, err
	}
	s := &stream{ctx: ctx, fetcher: f, address: want.URL, at: info.Size(), total: -1, limit: maxArchive}
	if want.Bytes > 0 {
		s.total, s.limit = want.Bytes, want.Bytes
	}
	defer s.Close()
	check := &checking{r: io.MultiReader(io.NewSectionReader(part, 0, info.Size()), io.TeeReader(s, part)), sum: sha256.New()}
	if want.Key != "" {
		check.signed = minisign.NewReader(check.r)
		check.r = check.signed
	}
	next, err := unpack(check, in.stage, in.accept, func(done, total int64) { progress("fetching", done, total) })
	switch {
	case check.err != nil:
		err = check.err // whatever came of it
	case err == nil:
		err = check.verify(want, signature)
	}
	if err == nil {
		return next, nil
	}
	bad, isBad := errors.AsType[errPacked](err)
	switch {
	case isBad:
		err = errors.Join(refused(want.URL, bad), os.Remove(name))
	case errors.Is(err, unix.ENOSPC):
		err = errs.New(errs.Unavailable, "there is no room for the bundle in %s", filepath.Dir(in.dir)).Because(err).Try("free some; the bundle there was is still in use")
		err = errors.Join(err, os.Remove(name))
	case check.err != nil && ctx.Err() == nil:
		err = errs.New(errs.Unavailable, "the bundle can't be fetched from %s", want.URL).Because(err).Try("try again: it goes on where it was")
	}
	return next, err
}

// checking reads an archive and knows, once it has been read to its end, what it is.
type checking struct {
	r      io.Reader
	sum    hash.Hash
	signed *minisign.Reader // or nil
	read   int64
	err    error // of the way it came
}

func (c *checking) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	if err != nil && err != io.EOF {
		c.err = err
	}
	c.sum.Write(p[:n])
	c.read += int64(n)
	return n, err
}

// verify reads what is left, and tells whether the whole is what was asked for.
func (c *checking) verify(want Wanted, signature []byte) error {
	if _, err := io.Copy(io.Discard, c); err != nil {
		return err
	}
	if got := hex.EncodeToString(c.sum.Sum(nil)); got != want.SHA256 {
		return packed("its SHA-256 is %s, and must be %s", got, want.SHA256)
	}
	if want.Bytes > 0 && c.read != want.Bytes {
		return packed("it has %d bytes, and must have %d", c.read, want.Bytes)
	}
	if c.signed == nil {
		return nil
	}
	var key minisign.PublicKey
	if err := key.UnmarshalText([]byte(want.Key)); err != nil {
		return err
	}
	if !c.signed.Verify(key, signature) {
		return packed("it is not signed with the key %s", fmt.Sprintf("%X", key.ID()))
	}
	return nil
}

// removeParts removes downloads for dir that were cut short, but not the one named.
func removeParts(dir, but string) error {
	parts, err := filepath.Glob(dir + ".*" + partSuffix)
	for _, p := range parts {
		if p != but {
			err = errors.Join(err, os.Remove(p))
		}
	}
	return err
}
