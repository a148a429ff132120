package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"regexp"
	"strings"
)

// report collects how suites went.
type report struct {
	suites []*suiteReport
}

// suiteReport reads the output of one suite, as go test -v prints it.
type suiteReport struct {
	name                    string
	to                      io.Writer
	line                    bytes.Buffer
	passed, failed, skipped int
	skips                   []string // why, as the tests say it
	err                     error    // of the suite as a whole
}

func (r *report) suite(name string, to io.Writer) *suiteReport {
	s := &suiteReport{name: name, to: to}
	r.suites = append(r.suites, s)
	return s
}

var (
	verdictPattern = regexp.MustCompile(`^\s*--- (PASS|FAIL|SKIP): `)
	skipPattern    = regexp.MustCompile(`SKIP: .*`)
)

// Write passes the output on and reads its lines.
func (s *suiteReport) Write(p []byte) (int, error) {
	for _, c := range p {
		if c != '\n' {
			s.line.WriteByte(c)
			continue
		}
		s.read(s.line.String())
		s.line.Reset()
	}
	return s.to.Write(p)
}

func (s *suiteReport) read(line string) {
	verdict := verdictPattern.FindStringSubmatch(line)
	switch {
	case verdict == nil:
		if why := skipPattern.FindString(line); why != "" {
			s.skips = append(s.skips, why)
		}
	case verdict[1] == "PASS":
		s.passed++
	case verdict[1] == "FAIL":
		s.failed++
	case verdict[1] == "SKIP":
		s.skipped++
	}
}

// end takes how a process of the suite ended. A suite that ran no test has failed too: most
// likely its tests have other names by now.
func (s *suiteReport) end(err error) {
	if code, ok := errors.AsType[*exec.ExitError](err); ok && code.ExitCode() == 1 && s.failed > 0 {
		err = errors.New("tests failed")
	}
	if err == nil && s.passed+s.skipped == 0 {
		err = errors.New("it has no such tests")
	}
	if s.err == nil {
		s.err = err
	}
}

func (r *report) failed() bool {
	for _, s := range r.suites {
		if s.err != nil {
			return true
		}
	}
	return false
}

// summary gives a line for each suite and each reason to skip, and one for all.
func (r *report) summary() string {
	var out strings.Builder
	var passed, failed, skipped int
	out.WriteString("=== lab\n")
	for _, s := range r.suites {
		word := "ok"
		if s.err != nil {
			word = "FAIL"
		}
		fmt.Fprintf(&out, "%-5s %-40s %d passed, %d failed, %d skipped", word, s.name, s.passed, s.failed, s.skipped)
		if s.err != nil {
			fmt.Fprintf(&out, ": %v", s.err)
		}
		out.WriteByte('\n')
		for _, why := range s.skips {
			fmt.Fprintf(&out, "      %s\n", why)
		}
		passed, failed, skipped = passed+s.passed, failed+s.failed, skipped+s.skipped
	}
	fmt.Fprintf(&out, "lab: %d passed, %d failed, %d skipped in %d suites; ", passed, failed, skipped, len(r.suites))
	return out.String()
}
