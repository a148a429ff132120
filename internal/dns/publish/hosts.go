package publish

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"banger/internal/dns"
	"banger/internal/errs"
)

// Hosts publishes names as a block of lines in the hosts file. All other lines stay byte for
// byte as they are.
type Hosts struct {
	File  string
	Owner string // whose block it is; several bangers have one each

	door door
}

// Name implements Publisher.
func (*Hosts) Name() string { return "hosts" }

// Publish implements Publisher.
func (h *Hosts) Publish(ctx context.Context, s State) error {
	if len(s.Records) == 0 && !h.editable() {
		return nil
	}
	return replace(ctx, h.door, h.File, func(text string) string { return block{h.Owner}.edit(text, s.Records) })
}

// editable tells whether the file is there and of a kind that is edited: in another nothing
// of ours can be.
func (h *Hosts) editable() bool {
	info, err := os.Lstat(h.File)
	return err == nil && info.Mode().IsRegular()
}

// Withdraw implements Publisher.
func (h *Hosts) Withdraw(ctx context.Context) error { return h.Publish(ctx, State{}) }

// Lines returns the records that our lines in the file tell.
func (h *Hosts) Lines() ([]dns.Record, error) {
	if !h.editable() {
		return nil, nil
	}
	f, text, err := read(h.File)
	if errs.KindOf(err) == errs.Conflict || errors.Is(err, fs.ErrPermission) { // nor can it have been edited
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	f.Close()
	var found []dns.Record
	for line := range strings.Lines(text) {
		if r, ok := (block{h.Owner}).parse(strings.TrimSuffix(line, "\n")); ok {
			found = append(found, r)
		}
	}
	return found, nil
}

// block is our part of a hosts file. Each line in it tells whose it is, so that what others
// write into the middle of it is theirs, and one that was torn apart is still taken away.
type block struct{ owner string }

// joined marks a block before which the file ended without the end of a line.
const joined = " (the line before had no end)"

func (b block) name() string {
	if quoted := strconv.Quote(b.owner); quoted != `"`+b.owner+`"` {
		return quoted
	}
	return b.owner
}

func (b block) begin() string {
	return "# begin of banger " + b.name() + ": its VMs' names; bangerd keeps these lines"
}
func (b block) end() string  { return "# end of banger " + b.name() }
func (b block) mark() string { return "\t# banger " + b.name() + " " }

func (b block) line(r dns.Record) string {
	return r.Addr.String() + "\t" + r.Name + "." + strings.TrimSuffix(dns.Domain, ".") + b.mark() + r.ID
}

// parse reads a line of ours.
func (b block) parse(line string) (r dns.Record, ours bool) {
	entry, id, ours := strings.Cut(line, b.mark())
	if !ours || strings.ContainsAny(id, " \t") {
		return r, false
	}
	r.ID = id
	if f := strings.Fields(entry); len(f) == 2 {
		r.Name = strings.TrimSuffix(f[1], "."+strings.TrimSuffix(dns.Domain, "."))
		_ = r.Addr.UnmarshalText([]byte(f[0])) // of a line that was changed: it is ours all the same
	}
	return r, true
}

// edit replaces our lines in the text of a hosts file.
func (b block) edit(text string, records []dns.Record) string {
	var before, after strings.Builder
	rest, wasJoined := &before, false
	for line := range strings.Lines(text) {
		bare := strings.TrimSuffix(line, "\n")
		_, ours := b.parse(bare)
		if ours || bare == b.begin() || bare == b.begin()+joined || bare == b.end() {
			wasJoined = wasJoined || bare == b.begin()+joined
			rest = &after
			continue
		}
		rest.WriteString(line)
	}
	head := before.String()
	if wasJoined && after.Len() == 0 {
		head = strings.TrimSuffix(head, "\n")
	}
	if len(records) == 0 {
		return head + after.String()
	}
	first := b.begin()
	if head != "" && !strings.HasSuffix(head, "\n") {
		head, first = head+"\n", first+joined
	}
	lines := []string{first}
	for _, r := range records {
		lines = append(lines, b.line(r))
	}
	lines = append(lines, b.end())
	return head + strings.Join(lines, "\n") + "\n" + after.String()
}
