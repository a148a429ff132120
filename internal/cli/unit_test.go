package cli

import (
	"bytes"
	"errors"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"banger/api"
)

func TestShown(t *testing.T) {
	for _, tc := range []struct{ in, want string }{
		{"", ""},
		{"plain Größe 日本", "plain Größe 日本"},
		{"a\nb\tc\r", `a\nb\tc\r`},
		{"\x1b[2J", `\x1b[2J`},
		{"\u0085\u009b", `\u0085\u009b`},
		{"a\u202eb\u200b", `a\u202eb\u200b`},
		{"bad \xff\xc2", `bad \xff\xc2`},
		{"real \uFFFD", "real \uFFFD"},
		{"\x00\x7f", `\x00\x7f`},
		{"\U000E0001", `\U000e0001`},
	} {
		if got := shown(tc.in); got != tc.want {
			t.Errorf("shown(%q) = %q, want %q", tc.in, got, tc.want)
		}
	}
	if got, want := shownLines("why\nbanger: all is well\x07\r\n\tx"), "why\n  banger: all is well\\a\n      x"; got != want {
		t.Errorf("shownLines: got %q, want %q", got, want)
	}
}

// tame tells whether s can do nothing to a terminal but print.
func tame(s string) bool {
	for _, r := range s {
		if r != '\n' && r < ' ' || r >= 0x7f && r < 0xa0 {
			return false
		}
	}
	return utf8.ValidString(s)
}

func FuzzShown(f *testing.F) {
	for _, s := range []string{"a", "\x1b]0;x\x07", "\u202e", "\xff", "a\nb"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if got := shown(s); !tame(got) || strings.Contains(got, "\n") {
			t.Errorf("shown(%q) = %q", s, got)
		}
		for i, line := range strings.Split(shownLines(s), "\n") {
			if !tame(line) || i > 0 && !strings.HasPrefix(line, "  ") {
				t.Errorf("shownLines(%q): line %q", s, line)
			}
		}
	})
}

func TestCalm(t *testing.T) {
	for _, tc := range []struct{ in, want string }{
		{"boot\r\n\tok\n", "boot\r\n\tok\n"},
		{"\x1b[0;32m OK \x1b[m", "\x1b[0;32m OK \x1b[m"},
		{"\x1b[2J", "^[[2J"},
		{"\x1b]0;title\x07", "^[]0;title^G"},
		{"\x1b[\x1b[1mx", "^[[\x1b[1mx"},
		{"\x1b[" + strings.Repeat("1", 99) + "m", "^[[" + strings.Repeat("1", 99) + "m"},
		{"\xc2\x9b2J £ é", `\u009b2J £ é`},
		{"\x7f\x00", "^?^@"},
	} {
		for _, chunk := range []int{1, 2, 1000} {
			var b bytes.Buffer
			c := &calm{w: &b}
			for part := range slices.Chunk([]byte(tc.in), chunk) {
				if n, err := c.Write(part); n != len(part) || err != nil {
					t.Fatalf("Write = %d, %v", n, err)
				}
			}
			if b.String() != tc.want {
				t.Errorf("calm(%q) by %d = %q, want %q", tc.in, chunk, b.String(), tc.want)
			}
		}
	}
}

func TestParseSize(t *testing.T) {
	for _, tc := range []struct {
		in   string
		want int64 // 0: an error
	}{
		{"1", 1}, {"1073741824", 1 << 30}, {"9223372036854775807", math.MaxInt64}, {"4503599627370497", 4503599627370497},
		{"1G", 1 << 30}, {"1GiB", 1 << 30}, {"1gb", 1 << 30}, {"512M", 512 << 20}, {"1.5G", 3 << 29}, {"2T", 2 << 40}, {"7b", 7},
		{"", 0}, {"0", 0}, {"0G", 0}, {"-1", 0}, {"-1G", 0}, {"0.5", 0}, {"9e99", 0}, {"1e3", 0}, {"NaN", 0}, {"Inf", 0}, {"G", 0},
		{"1X", 0}, {"1GG", 0}, {"1iB", 0}, {"1 G", 0}, {" 1G", 0}, {"1G\n", 0}, {"0x10", 0}, {"1_000", 0}, {"+1", 0}, {"1.2.3", 0}, {".", 0},
		{"9223372036854775808", 0}, {"8192P", 0}, {"8191P", 8191 << 50}, {"99999999999999999999G", 0}, {strings.Repeat("9", 400), 0},
	} {
		got, err := parseSize(tc.in)
		if got != tc.want || (err != nil) != (tc.want == 0) {
			t.Errorf("parseSize(%q) = %d, %v; want %d", tc.in, got, err, tc.want)
		}
	}
}

func FuzzParseSize(f *testing.F) {
	for _, s := range []string{"1G", "1.5GiB", "-1", "9e99", "NaN", "0", "8191P"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if n, err := parseSize(s); (err == nil) != (n > 0) {
			t.Errorf("parseSize(%q) = %d, %v", s, n, err)
		}
	})
}

func TestParseEnv(t *testing.T) {
	lookup := func(k string) (string, bool) { return "red", k == "COLOUR" }
	for _, tc := range []struct {
		in, want string
		ok, bad  bool
	}{
		{"A=b", "A=b", true, false},
		{"A=", "A=", true, false},
		{"A=b=c\nd", "A=b=c\nd", true, false},
		{"COLOUR", "COLOUR=red", true, false},
		{"ABSENT", "", false, false},
		{"", "", false, true},
		{"=x", "", false, true},
		{"A=\x00", "", false, true},
	} {
		got, ok, err := parseEnv(tc.in, lookup)
		if got != tc.want || ok != tc.ok || (err != nil) != tc.bad {
			t.Errorf("parseEnv(%q) = %q, %v, %v", tc.in, got, ok, err)
		}
	}
}

func FuzzParseEnv(f *testing.F) {
	f.Add("A=b")
	f.Add("=")
	f.Fuzz(func(t *testing.T, s string) {
		kv, ok, err := parseEnv(s, func(string) (string, bool) { return "v", true })
		if (err == nil) != ok || ok && strings.IndexByte(kv, '=') < 1 {
			t.Errorf("parseEnv(%q) = %q, %v, %v", s, kv, ok, err)
		}
	})
}

func FuzzParsePlace(f *testing.F) {
	for _, s := range []string{"vm:/x", "./a:b", "/a:b", ":", "a", "vm:", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p := parsePlace(s)
		back := p.path
		if p.vm != nil {
			back = *p.vm + ":" + p.path
		}
		if back != s || p.vm != nil && strings.Contains(*p.vm, "/") {
			t.Errorf("parsePlace(%q) = %v, %q", s, p.vm, p.path)
		}
		local := parsePlace("./" + s)
		if local.vm != nil {
			t.Errorf("./%s is taken for a VM's", s)
		}
	})
}

func TestKernelName(t *testing.T) {
	for _, tc := range []struct{ in, want string }{
		{"/boot/vmlinuz-6.1.0-40-amd64", "6-1-0-40-amd64"},
		{"vmlinux", "vmlinux"},
		{"vmlinuz-", "kernel"},
		{"Ω", "kernel"},
		{strings.Repeat("a.", 60), strings.TrimSuffix(strings.Repeat("a-", 32), "-")},
	} {
		if got := kernelName(tc.in); got != tc.want {
			t.Errorf("kernelName(%q) = %q, want %q", tc.in, got, tc.want)
		}
	}
}

func TestProgress(t *testing.T) {
	watch := func(live bool, label string) (*progress, *bytes.Buffer) {
		var b bytes.Buffer
		p := &progress{w: &b, live: live, label: label, start: time.Now(), timer: time.NewTimer(time.Hour), begun: map[string]time.Time{}}
		return p, &b
	}
	t.Run("quick work is silent", func(t *testing.T) {
		p, b := watch(true, "")
		p.event(api.Event{Stage: "boot"})
		p.event(api.Event{Stage: "configure"})
		p.close()
		p.event(api.Event{Stage: "late"})
		p.tick()
		if b.Len() > 0 {
			t.Errorf("got %q", b)
		}
	})
	t.Run("plain lines once for stages that last", func(t *testing.T) {
		p, b := watch(false, "web")
		p.event(api.Event{Stage: "quick"})
		p.event(api.Event{Stage: "boot\x1b"})
		p.tick()
		p.event(api.Event{Stage: "boot\x1b", Done: 1, Total: 2})
		p.tick()
		p.event(api.Event{Warning: "slow\ndisk"})
		p.close()
		if got, want := b.String(), "banger: web: boot\\x1b…\nbanger: warning: slow\n  disk\n"; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	})
	t.Run("plain lines of stages side by side", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			p, b := watch(false, "")
			for n := range int64(10) {
				p.event(api.Event{Stage: "layer 1", Done: n, Total: 10})
				p.event(api.Event{Stage: "layer 2", Done: n, Total: 10})
				time.Sleep(patience / 5)
			}
			p.close()
			if got, want := b.String(), "banger: layer 1…\nbanger: layer 2…\n"; got != want {
				t.Errorf("got %q, want %q", got, want)
			}
		})
	})
	t.Run("a line on a terminal", func(t *testing.T) {
		p, b := watch(true, "")
		p.event(api.Event{Stage: "copying", Done: 1 << 20, Total: 2 << 20})
		p.tick()
		p.close()
		got := b.String()
		if !strings.Contains(got, "copying [============            ] 1MiB/2MiB") || !strings.HasSuffix(got, "\r\x1b[K") {
			t.Errorf("got %q", got)
		}
	})
	for _, e := range []api.Event{{Done: -1, Total: 1}, {Done: 9, Total: 1}, {Done: math.MaxInt64, Total: math.MaxInt64}, {Done: 5, Total: -1}} {
		if amount(e) == "" {
			t.Errorf("amount(%+v) is empty", e)
		}
	}
}

func TestQuoting(t *testing.T) {
	self := selfCommand{`/opt/it's "100%" \ here/banger`, "--socket", "/s"}
	if got, want := self.shell("ssh-proxy"), `'/opt/it'\''s "100%%" \ here/banger' 'ssh-proxy' '--socket' '/s'`; got != want {
		t.Errorf("shell: got %s, want %s", got, want)
	}
	if got, want := self.argv("v"), `"/opt/it's \"100%%\" \\ here/banger" "v" "--socket" "/s"`; got != want {
		t.Errorf("argv: got %s, want %s", got, want)
	}
}

func TestUptime(t *testing.T) {
	now := time.Now()
	before := now.Add(-3 * time.Hour)
	after := now.Add(time.Hour) // the clock was set back
	for _, tc := range []struct {
		vm   api.VM
		want string
	}{
		{api.VM{State: api.StateRunning, StartedAt: &before}, "3 hours"},
		{api.VM{State: api.StateRunning, StartedAt: &after}, "less than a second"},
		{api.VM{State: api.StateStopped, StartedAt: &before, StoppedAt: &before}, "stopped 3 hours ago"},
		{api.VM{State: api.StateCreating}, ""},
	} {
		if got := uptime(tc.vm, now); got != tc.want {
			t.Errorf("uptime of %s: got %q, want %q", tc.vm.State, got, tc.want)
		}
	}
}

func TestUntilLeave(t *testing.T) {
	u := &untilLeave{r: strings.NewReader("ls\x1dnot this")}
	b, err := io.ReadAll(u)
	if string(b) != "ls" || !errors.Is(err, errLeft) {
		t.Errorf("got %q, %v", b, err)
	}
}

// TestEnvironment makes sure that the last of several values counts, as it does for others.
func TestEnvironment(t *testing.T) {
	a := &app{Program: Program{Env: []string{"A=1", "B", "A=2"}}}
	if got := a.getenv("A"); got != "2" {
		t.Errorf("A = %q", got)
	}
	if _, ok := a.lookupEnv("B"); ok {
		t.Error("B has no value")
	}
}

func TestFollowFile(t *testing.T) {
	f, err := os.CreateTemp(t.TempDir(), "log")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r, w := io.Pipe()
	read, err := os.Open(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	defer read.Close()
	done := make(chan error, 1)
	go func() { done <- followFile(t.Context(), w, read) }()
	buf := make([]byte, 16)
	for _, line := range []string{"one\n", "two\n"} {
		if _, err := f.WriteString(line); err != nil {
			t.Fatal(err)
		}
		if n, err := r.Read(buf); err != nil || string(buf[:n]) != line {
			t.Fatalf("got %q, %v", buf[:n], err)
		}
	}
	r.CloseWithError(io.ErrClosedPipe)
	if _, err := f.WriteString("three\n"); err != nil {
		t.Fatal(err)
	}
	if err := <-done; !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("got %v", err)
	}
}

func TestSelections(t *testing.T) {
	vms := []api.VM{{Name: "a", State: api.StateRunning, Image: "tiny"}, {Name: "b", State: api.StateStopped, Image: "tiny"}, {Name: "c", State: api.StateStopped, Image: "debian"}}
	for _, tc := range []struct {
		filters []string
		want    string
	}{
		{nil, "abc"},
		{[]string{"state=stopped"}, "bc"},
		{[]string{"image=tiny"}, "ab"},
		{[]string{"state=stopped", "image=tiny"}, "b"},
		{[]string{"image=none"}, ""},
		{[]string{"state=asleep"}, "!"},
		{[]string{"state="}, "!"},
		{[]string{"state"}, "!"},
		{[]string{"colour=red"}, "!"},
		{[]string{"\x1b[31m=x"}, "!"},
	} {
		match, err := (&selection{filters: tc.filters}).match()
		got := ""
		if err != nil {
			got = "!"
			if strings.ContainsRune(err.Error(), 0x1b) {
				t.Errorf("%q: the error steers a terminal: %q", tc.filters, err)
			}
		}
		for _, vm := range vms {
			if match != nil && match(vm) {
				got += vm.Name
			}
		}
		if got != tc.want {
			t.Errorf("%q selects %q, want %q", tc.filters, got, tc.want)
		}
	}
}

// What is no file stays what it is.
func TestWriteToAPipe(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pipe")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	read := make(chan string)
	go func() {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Error(err)
		}
		read <- string(b)
	}()
	if err := writeWhole(path, func(w io.Writer) error { _, err := io.WriteString(w, "archive"); return err }); err != nil {
		t.Error(err)
	}
	if got := <-read; got != "archive" {
		t.Errorf("got %q", got)
	}
	if info, err := os.Lstat(path); err != nil || info.Mode()&os.ModeNamedPipe == 0 {
		t.Errorf("it has become %v, %v", info, err)
	}
}
