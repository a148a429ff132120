package guestd

import (
	"bufio"
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"banger/internal/errs"
)

// account is a user of the guest.
type account struct {
	name   string
	uid    uint32
	gid    uint32
	groups []uint32 // supplementary
	home   string
	shell  string
}

// lookup finds a user by name or number in the guest's own files. An empty name is root,
// who exists even in an image without /etc/passwd.
func (a *Agent) lookup(name string) (account, error) {
	if name == "" {
		name = "root"
	}
	passwd, err := os.ReadFile(filepath.Join(a.Root, "etc/passwd"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return account{}, err
	}
	u, ok := parsePasswd(passwd, name)
	switch {
	case ok:
	case name == "root" || name == "0":
		u = account{name: "root", home: "/root"}
	default:
		return account{}, errs.New(errs.NotFound, "the guest has no user %q", name)
	}
	if u.shell == "" {
		u.shell = "/bin/sh"
	}
	if u.uid != 0 {
		group, err := os.ReadFile(filepath.Join(a.Root, "etc/group"))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return account{}, err
		}
		u.groups = parseGroups(group, u.name)
	}
	return u, nil
}

// runAs finds whom a command runs as: a user, by name or number, or a user and a group with a
// colon between them. Numbers need not be in the guest's files, as container images count on.
func (a *Agent) runAs(who string) (account, error) {
	name, group, grouped := strings.Cut(who, ":")
	u, err := a.lookup(name)
	if err != nil {
		uid, notNumber := strconv.ParseUint(name, 10, 31)
		if errs.KindOf(err) != errs.NotFound || notNumber != nil {
			return account{}, err
		}
		u = account{name: name, uid: uint32(uid), home: "/", shell: "/bin/sh"}
	}
	if !grouped {
		return u, nil
	}
	u.gid, err = a.lookupGroup(group)
	u.groups = nil // as those who run containers read it: this group and no other
	return u, err
}

// lookupGroup finds a group by name or number.
func (a *Agent) lookupGroup(name string) (uint32, error) {
	file, err := os.ReadFile(filepath.Join(a.Root, "etc/group"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, err
	}
	for f := range fields(file, 4) {
		if gid, err := strconv.ParseUint(f[2], 10, 32); err == nil && f[0] == name {
			return uint32(gid), nil
		}
	}
	gid, err := strconv.ParseUint(name, 10, 31)
	if err != nil {
		return 0, errs.New(errs.NotFound, "the guest has no group %q", name)
	}
	return uint32(gid), nil
}

// parsePasswd finds the line of a user, by name first, then by number.
func parsePasswd(passwd []byte, who string) (account, bool) {
	var byNumber account
	found := false
	for f := range fields(passwd, 7) {
		uid, err1 := strconv.ParseUint(f[2], 10, 32)
		gid, err2 := strconv.ParseUint(f[3], 10, 32)
		if err1 != nil || err2 != nil {
			continue
		}
		u := account{name: f[0], uid: uint32(uid), gid: uint32(gid), home: f[5], shell: f[6]}
		if u.name == who {
			return u, true
		}
		if !found && f[2] == who {
			byNumber, found = u, true
		}
	}
	return byNumber, found
}

// parseGroups lists the groups that have a user as a member.
func parseGroups(group []byte, user string) []uint32 {
	var gids []uint32
	for f := range fields(group, 4) {
		gid, err := strconv.ParseUint(f[2], 10, 32)
		if err == nil && slices.Contains(strings.Split(f[3], ","), user) {
			gids = append(gids, uint32(gid))
		}
	}
	return gids
}

// fields yields the lines that have n fields between colons.
func fields(file []byte, n int) func(yield func([]string) bool) {
	return func(yield func([]string) bool) {
		lines := bufio.NewScanner(bytes.NewReader(file))
		for lines.Scan() {
			if f := strings.Split(lines.Text(), ":"); len(f) == n && !yield(f) {
				return
			}
		}
	}
}

// environment is what a command of u's starts with, before the client's own settings.
func (a *Agent) environment(u account, term bool) []string {
	path := "/usr/local/bin:/usr/bin:/bin:/usr/local/games:/usr/games"
	if u.uid == 0 {
		path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	}
	env := []string{"PATH=" + path, "HOME=" + u.home, "USER=" + u.name, "LOGNAME=" + u.name, "SHELL=" + u.shell}
	if term {
		env = append(env, "TERM=xterm-256color")
	}
	for _, name := range []string{"etc/environment", "etc/default/locale"} {
		if file, err := os.ReadFile(filepath.Join(a.Root, name)); err == nil {
			env = append(env, parseEnvironment(file)...)
		}
	}
	return env
}

// parseEnvironment reads NAME=VALUE lines as pam_env does: comments, an optional "export",
// one pair of quotes.
func parseEnvironment(file []byte) []string {
	var env []string
	lines := bufio.NewScanner(bytes.NewReader(file))
	for lines.Scan() {
		line := strings.TrimPrefix(strings.TrimSpace(lines.Text()), "export ")
		name, value, ok := strings.Cut(line, "=")
		if !ok || name == "" || strings.ContainsAny(name, " \t#\x00") {
			continue
		}
		if n := len(value); n >= 2 && (value[0] == '"' || value[0] == '\'') && value[n-1] == value[0] {
			value = value[1 : n-1]
		}
		env = append(env, name+"="+value)
	}
	return env
}

// getenv returns the last setting of name.
func getenv(env []string, name string) string {
	for _, kv := range slices.Backward(env) {
		if value, ok := strings.CutPrefix(kv, name+"="); ok {
			return value
		}
	}
	return ""
}

// lastWins drops settings that a later one of the same name replaces: libc's getenv would
// find the first.
func lastWins(env []string) []string {
	seen := map[string]bool{}
	kept := make([]string, 0, len(env))
	for _, kv := range slices.Backward(env) {
		name, _, ok := strings.Cut(kv, "=")
		if ok && !seen[name] && !strings.Contains(kv, "\x00") {
			seen[name] = true
			kept = append(kept, kv)
		}
	}
	slices.Reverse(kept)
	return kept
}
