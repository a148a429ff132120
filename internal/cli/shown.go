package cli

import (
	"io"
	"strconv"
	"strings"
	"unicode/utf8"
)

// shown returns s as one line that can be printed on a terminal: control characters,
// invisible ones and bytes that are no UTF-8 appear as Go would escape them. Whatever
// comes from a guest, an image or a name that someone else chose goes through it.
func shown(s string) string {
	if !hidden(s) {
		return s
	}
	var b strings.Builder
	for i, r := range s {
		switch {
		case strconv.IsPrint(r) && (r != utf8.RuneError || strings.HasPrefix(s[i:], "\uFFFD")):
			b.WriteRune(r)
		case r == utf8.RuneError:
			b.WriteString(`\x` + strconv.FormatUint(uint64(s[i])|0x100, 16)[1:])
		default:
			q := strconv.QuoteRune(r)
			b.WriteString(q[1 : len(q)-1])
		}
	}
	return b.String()
}

func hidden(s string) bool {
	for _, r := range s {
		if !strconv.IsPrint(r) || r == utf8.RuneError {
			return true
		}
	}
	return false
}

// shownLines is shown for a message of several lines. All but the first are indented, so
// that no text of a guest's can pass for a message of banger's.
func shownLines(s string) string {
	lines := strings.Split(s, "\n")
	for i := range lines {
		lines[i] = shown(strings.ReplaceAll(strings.TrimSuffix(lines[i], "\r"), "\t", "    "))
	}
	return strings.Join(lines, "\n  ")
}

// calm passes a guest's console on to a terminal. Line ends, tabs and colours go through;
// other control characters, with which a guest could move the cursor, set the title or
// make the terminal type, are spelt out.
type calm struct {
	w   io.Writer
	esc []byte // an escape sequence or two-byte control character under way
}

// longestColour bounds ESC [ … m; what is longer is not a colour.
const longestColour = 32

func (c *calm) Write(p []byte) (int, error) {
	out := make([]byte, 0, len(p)+64)
	for _, b := range p {
		out = c.step(out, b)
	}
	if _, err := c.w.Write(out); err != nil {
		return 0, err
	}
	return len(p), nil
}

func (c *calm) step(out []byte, b byte) []byte {
	if len(c.esc) > 0 && c.esc[0] == 0xC2 { // U+0080 to U+009F are control characters in UTF-8
		c.esc = c.esc[:0]
		if b >= 0x80 && b < 0xA0 {
			return append(out, `\u00`+strconv.FormatUint(uint64(b), 16)...)
		}
		return c.step(append(out, 0xC2), b)
	}
	if n := len(c.esc); n > 0 {
		switch {
		case n == 1 && b == '[', n > 1 && n < longestColour && (b >= '0' && b <= '9' || b == ';'):
			c.esc = append(c.esc, b)
			return out
		case n > 1 && b == 'm':
			out = append(append(out, c.esc...), b)
			c.esc = c.esc[:0]
			return out
		}
		out = append(append(out, "^["...), c.esc[1:]...)
		c.esc = c.esc[:0]
	}
	switch {
	case b == 0x1B || b == 0xC2:
		c.esc = append(c.esc, b)
		return out
	case b == '\n' || b == '\r' || b == '\t' || b >= 0x20 && b != 0x7F:
		return append(out, b)
	}
	return append(out, '^', b^0x40)
}
