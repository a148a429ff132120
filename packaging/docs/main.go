// Command docs writes what is made of banger's commands and settings: man pages, completions, the
// pages of docs/commands and docs/config.md.
package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"

	"banger/internal/cli"
	"banger/internal/config"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: docs install DIR|pages DIR")
		os.Exit(2)
	}
	write := map[string]func(string) error{"install": install, "pages": pages}[os.Args[1]]
	if write == nil {
		fmt.Fprintf(os.Stderr, "docs: there is nothing called %q\n", os.Args[1])
		os.Exit(2)
	}
	if err := write(os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "docs:", err)
		os.Exit(1)
	}
}

// install writes man pages and completions as they lie below a prefix's share.
func install(dir string) error {
	root := cli.Commands()
	man := filepath.Join(dir, "man/man1")
	if err := os.MkdirAll(man, 0o755); err != nil {
		return err
	}
	epoch := time.Unix(0, 0).UTC() // the same pages for the same commands
	if err := doc.GenManTree(root, &doc.GenManHeader{Title: "BANGER", Section: "1", Source: "banger", Manual: "banger", Date: &epoch}, man); err != nil {
		return err
	}
	for path, write := range map[string]func(*bytes.Buffer) error{
		"bash-completion/completions/banger":    func(b *bytes.Buffer) error { return root.GenBashCompletionV2(b, true) },
		"zsh/site-functions/_banger":            func(b *bytes.Buffer) error { return root.GenZshCompletion(b) },
		"fish/vendor_completions.d/banger.fish": func(b *bytes.Buffer) error { return root.GenFishCompletion(b, true) },
	} {
		var b bytes.Buffer
		if err := write(&b); err != nil {
			return err
		}
		if err := put(filepath.Join(dir, path), b.Bytes()); err != nil {
			return err
		}
	}
	return nil
}

func put(path string, content []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, content, 0o644)
}

// pages writes those pages of docs that are made, in dir.
func pages(dir string) error {
	commands := filepath.Join(dir, "commands")
	if err := os.RemoveAll(commands); err != nil {
		return err
	}
	if err := os.MkdirAll(commands, 0o755); err != nil {
		return err
	}
	root := cli.Commands()
	var index bytes.Buffer
	index.WriteString("# Commands\n\nMade of the commands' own help by `make docs`.\n\n")
	if err := page(root, commands, &index); err != nil {
		return err
	}
	if err := put(filepath.Join(commands, "README.md"), index.Bytes()); err != nil {
		return err
	}
	return put(filepath.Join(dir, "config.md"), settings())
}

// page writes the pages of a command and those below it, and their lines in the index.
func page(c *cobra.Command, dir string, index *bytes.Buffer) error {
	if !c.IsAvailableCommand() && c.HasParent() || c.Name() == "completion" {
		return nil
	}
	var b bytes.Buffer
	if err := doc.GenMarkdown(c, &b); err != nil {
		return err
	}
	name := strings.ReplaceAll(c.CommandPath(), " ", "_") + ".md"
	// As the help on a terminal has it.
	text := strings.ReplaceAll(b.String(), "[=true|false]", "")
	if err := put(filepath.Join(dir, name), []byte(strings.TrimSpace(text)+"\n")); err != nil {
		return err
	}
	fmt.Fprintf(index, "- [%s](%s): %s\n", c.CommandPath(), name, c.Short)
	if c.Name() == "vm" { // the same verbs again
		return nil
	}
	for _, sub := range c.Commands() {
		if err := page(sub, dir, index); err != nil {
			return err
		}
	}
	return nil
}

// settings tells of every key.
func settings() []byte {
	var b bytes.Buffer
	b.WriteString("# Settings\n\nMade of the settings themselves by `make docs`. `banger config show` tells what is in effect and why,\n" +
		"`banger config example` prints a file with every key.\n\n| key | environment | flag | example |\n|---|---|---|---|\n")
	for _, k := range config.Keys {
		fmt.Fprintf(&b, "| `%s` | `%s` | `--%s` | `%s` |\n", k.Name, k.Env(), k.Flag(), k.Example)
	}
	for _, k := range config.Keys {
		fmt.Fprintf(&b, "\n**`%s`**: %s\n", k.Name, k.Doc)
	}
	return b.Bytes()
}
