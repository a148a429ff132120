package config

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"

	"banger/internal/errs"
)

// setting is a key's value in the file.
type setting struct {
	key       Key
	value     []string
	line, col int
}

// parse reads the config file. errs.Invalid with line and column if it is not one; unknown
// keys and values of another type are errors.
func parse(b []byte) ([]setting, error) {
	var whole map[string]any
	if err := toml.Unmarshal(b, &whole); err != nil {
		e, ok := errors.AsType[*toml.DecodeError](err)
		if !ok {
			return nil, errs.New(errs.Invalid, "this is no TOML").Because(err)
		}
		line, col := e.Position()
		return nil, errs.New(errs.Invalid, "line %d, column %d: %s", line, col, strings.TrimPrefix(e.Error(), "toml: ")).Try("see https://toml.io for how TOML is written")
	}
	var p unstable.Parser
	p.Reset(b)
	var out []setting
	for p.NextExpression() {
		s, err := expression(&p, p.Expression())
		if err != nil {
			return nil, err
		}
		out = append(out, s)
	}
	return out, p.Error()
}

func expression(p *unstable.Parser, e *unstable.Node) (setting, error) {
	var names []string
	var s setting
	for it := e.Key(); it.Next(); {
		if len(names) == 0 {
			start := p.Shape(it.Node().Raw).Start
			s.line, s.col = start.Line, start.Column
		}
		names = append(names, string(it.Node().Data))
	}
	name := strings.Join(names, ".")
	if e.Kind != unstable.KeyValue {
		return s, errs.New(errs.Invalid, "line %d, column %d: there is no table [%s], nor any other", s.line, s.col, name).
			Try("each key stands for itself, as in banger config example")
	}
	at := slices.IndexFunc(Keys, func(k Key) bool { return k.Name == name })
	if at < 0 {
		err := errs.New(errs.Invalid, "line %d, column %d: unknown key %q", s.line, s.col, name)
		if near := nearest(name); near != "" {
			return s, err.Try("did you mean %s? banger config example shows all keys", near)
		}
		return s, err.Try("banger config example shows all keys")
	}
	s.key = Keys[at]
	var ok bool
	if s.value, ok = value(e.Value(), s.key.list); !ok {
		want := "a string, in quotes"
		if s.key.list {
			want = "a list of strings"
		}
		return s, errs.New(errs.Invalid, "line %d, column %d: %s is %s, not %s", s.line, s.col, name, want, kindName(e.Value().Kind)).Try("write it as %s = %s", name, s.key.Example)
	}
	return s, nil
}

func value(n *unstable.Node, list bool) (v []string, ok bool) {
	if !list {
		return []string{string(n.Data)}, n.Kind == unstable.String
	}
	if n.Kind != unstable.Array {
		return nil, false
	}
	for it := n.Children(); it.Next(); {
		if it.Node().Kind == unstable.Comment {
			continue
		}
		if it.Node().Kind != unstable.String {
			return nil, false
		}
		v = append(v, string(it.Node().Data))
	}
	return v, true
}

func kindName(k unstable.Kind) string {
	return cmp.Or(map[unstable.Kind]string{
		unstable.String: "a string", unstable.Array: "a list", unstable.Bool: "true or false", unstable.Integer: "a number", unstable.Float: "a number",
		unstable.InlineTable: "a table",
	}[k], "a date")
}

// Example is a config file with every key, explained and commented out.
func Example() []byte {
	var b bytes.Buffer
	b.WriteString("# The config file of banger and bangerd: the first there is of\n# $BANGER_CONFIG, $XDG_CONFIG_HOME/banger/config.toml (~/.config) and /etc/banger/config.toml.\n" +
		"# Each key is also an environment variable, BANGER_ and its name in capitals, and a flag of\n# both programs. A flag goes before the environment, and that before the file.\n" +
		"# `banger config show` tells what is in effect and why.\n")
	for _, k := range Keys {
		b.WriteString("\n")
		for _, line := range wrap(k.Doc, 90) {
			fmt.Fprintf(&b, "# %s\n", line)
		}
		fmt.Fprintf(&b, "#%s = %s\n", k.Name, k.Example)
	}
	return b.Bytes()
}

func wrap(text string, width int) (lines []string) {
	line := ""
	for _, word := range strings.Fields(text) {
		if line != "" && len(line)+1+len(word) > width {
			lines, line = append(lines, line), ""
		}
		line = strings.TrimSpace(line + " " + word)
	}
	return append(lines, line)
}
