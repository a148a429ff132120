package jail

import (
	"bufio"
	"context"
	"debug/elf"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"banger/internal/host"
)

// listLimit bounds how long a loader may take to list libraries: 2 ms on an idle host.
const listLimit = 30 * time.Second

// needs lists the files that a program consists of: itself, its loader, and what that says it
// would load. A script's is the program that reads it, too.
func needs(program string) ([]string, error) {
	reader, err := readerOf(program)
	if err != nil {
		return nil, err
	}
	if reader != "" {
		all, err := ofBinary(reader)
		return append(all, program), err
	}
	return ofBinary(program)
}

// readerOf returns the program that reads a script, "" for what is none.
func readerOf(program string) (string, error) {
	f, err := os.Open(program)
	if err != nil {
		return "", err
	}
	defer f.Close()
	line, _ := bufio.NewReader(io.LimitReader(f, maxFirstLine)).ReadString('\n') // a short file is no script
	words, found := strings.CutPrefix(line, "#!")
	if fields := strings.Fields(words); found && len(fields) > 0 {
		return fields[0], nil
	}
	return "", nil
}

const maxFirstLine = 256 // bytes: the kernel reads no more of a script

// listed is what is known of programs that are started again and again, by path, as long as
// neither they nor what libraries the host has have changed.
var listed struct {
	sync.Mutex
	programs map[string]listing
}

type listing struct {
	program, cache os.FileInfo
	files          []string
}

func ofBinary(program string) ([]string, error) {
	binary, err := os.Stat(program)
	if err != nil {
		return nil, err
	}
	cache, err := os.Stat(loaderCache)
	if err != nil { // nothing would tell
		return list(program)
	}
	listed.Lock()
	defer listed.Unlock()
	if l, ok := listed.programs[program]; ok && same(l.program, binary) && same(l.cache, cache) {
		return l.files, nil
	}
	files, err := list(program)
	if err == nil {
		if listed.programs == nil {
			listed.programs = map[string]listing{}
		}
		listed.programs[program] = listing{binary, cache, files}
	}
	return slices.Clip(files), err
}

func same(a, b os.FileInfo) bool {
	return os.SameFile(a, b) && a.Size() == b.Size() && a.ModTime().Equal(b.ModTime())
}

func list(program string) ([]string, error) {
	loader, err := loaderOf(program)
	if err != nil || loader == "" {
		return []string{program}, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), listLimit)
	defer cancel()
	out, err := host.Output(ctx, host.Command{Path: loader, Args: []string{"--list", program}, Env: []string{"LC_ALL=C"}})
	if err != nil {
		return nil, fmt.Errorf("list the libraries of %s: %w", program, err)
	}
	all := append([]string{program, loader}, libraries(string(out))...)
	// Without it the loader looks in a few places only.
	if _, err := os.Stat(loaderCache); err == nil {
		all = append(all, loaderCache)
	}
	slices.Sort(all)
	return slices.Compact(all), nil
}

const loaderCache = "/etc/ld.so.cache"

// loaderOf returns the loader that a program asks for, "" for one that needs none.
func loaderOf(program string) (string, error) {
	f, err := elf.Open(program)
	if err != nil {
		return "", fmt.Errorf("%s can't be confined: %w", program, err)
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type != elf.PT_INTERP {
			continue
		}
		name := make([]byte, p.Filesz)
		if _, err := p.ReadAt(name, 0); err != nil {
			return "", fmt.Errorf("%s can't be confined: %w", program, err)
		}
		return strings.TrimRight(string(name), "\x00"), nil
	}
	return "", nil
}

// libraries reads what a loader lists: "name => path (address)" or "path (address)" each line.
func libraries(list string) (paths []string) {
	for line := range strings.Lines(list) {
		if _, path, found := strings.Cut(line, " => "); found {
			line = path
		}
		line = strings.TrimSpace(line)
		if at := strings.LastIndex(line, " (0x"); at > 0 && strings.HasPrefix(line, "/") {
			paths = append(paths, line[:at])
		}
	}
	return paths
}
