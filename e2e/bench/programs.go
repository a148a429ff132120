package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

const helloWorld = `package main

import "fmt"

func main() { fmt.Println("hello, world") }
`

// programFigures measures the programs as they are installed: their sizes, and how long a command
// takes that hardly does anything, against a Go program that does not do anything.
func programFigures(b *bench) (figures []Figure, err error) {
	dir := filepath.Join(b.scratch, "programs")
	hello := filepath.Join(dir, "hello")
	if err := os.MkdirAll(hello, 0o755); err != nil {
		return nil, err
	}
	for name, text := range map[string]string{"go.mod": "module hello\n", "main.go": helloWorld} {
		if err := os.WriteFile(filepath.Join(hello, name), []byte(text), 0o644); err != nil {
			return nil, err
		}
	}
	build := func(in, what string) error { // as make install does
		c := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w", "-o", dir+"/bin/", what)
		c.Dir, c.Env = in, append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off")
		if out, err := c.CombinedOutput(); err != nil {
			return fmt.Errorf("go build %s: %w: %s", what, err, out)
		}
		return nil
	}
	if err := build(hello, "."); err != nil {
		return nil, err
	}
	for _, program := range []string{"banger", "bangerd", "banger-guest"} {
		if err := build(".", "./cmd/"+program); err != nil {
			return nil, err
		}
		info, err := os.Stat(filepath.Join(dir, "bin", program))
		if err != nil {
			return nil, err
		}
		figures = append(figures, Figure{"size_" + program, float64(info.Size()) / (1 << 20), "MiB", 1, 0, "the program as it is installed"})
	}
	banger := filepath.Join(dir, "bin/banger")
	run := func(argv ...string) func() error {
		return func() error { return b.background(argv[0], argv[1:]...) }
	}
	const n = 100
	alone, err := allInTurn(n, run(banger, "version"), run(filepath.Join(dir, "bin/hello")))
	if err != nil {
		return nil, err
	}
	if err := b.background(banger, "ls"); err != nil { // starts the daemon, whose version is told too
		return nil, err
	}
	beside, err := allInTurn(n, run(banger, "ls"), run(banger, "version"))
	if err != nil {
		return nil, err
	}
	return append(figures,
		Figure{"version_ratio", alone[0] / alone[1], "ratio", n, alone[1], "banger version where no daemon runs, against a hello world in Go"},
		Figure{"ls_over_version", (beside[0] - beside[1]) * 1000, "ms", n, beside[1] * 1000, "banger ls beyond banger version, both of which ask the daemon"}), nil
}
