package publish

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/google/renameio/v2"

	"banger/internal/dns"
	"banger/internal/errs"
	"banger/internal/host"
)

// execLimit bounds one call of the command.
const execLimit = 10 * time.Second

// Exec publishes names by a command that is run as `COMMAND… set NAME IP` and
// `COMMAND… del NAME IP`. Setting what is set, and deleting what is not, has to do no harm:
// after a crash it happens.
type Exec struct {
	Command []string
	Journal string // file that tells what was set and not deleted

	door door
	done map[string]string // set by this process, so that it need not be set again
}

// journal is what has been set, or may have been, by which command.
type journal struct {
	Command []string          `json:"command"`
	Names   map[string]string `json:"names"` // name → IP
}

// Name implements Publisher.
func (*Exec) Name() string { return "exec" }

// Publish implements Publisher.
func (e *Exec) Publish(ctx context.Context, s State) error {
	wanted := map[string]string{}
	for _, r := range s.Records {
		wanted[r.Name+"."+strings.TrimSuffix(dns.Domain, ".")] = r.Addr.String()
	}
	j, err := e.load()
	if err != nil {
		return err
	}
	if len(j.Names) > 0 && !slices.Equal(j.Command, e.Command) { // another was configured before
		if err := e.remove(ctx, &j, nil); err != nil {
			return err
		}
	}
	j.Command = e.Command
	err = e.remove(ctx, &j, wanted)
	return errors.Join(err, e.set(ctx, &j, wanted))
}

// Withdraw implements Publisher.
func (e *Exec) Withdraw(ctx context.Context) error {
	j, err := e.load()
	if err != nil || len(j.Names) == 0 {
		return err
	}
	return e.remove(ctx, &j, nil)
}

// remove deletes what is not wanted. What can't be deleted is tried again the next time.
func (e *Exec) remove(ctx context.Context, j *journal, wanted map[string]string) (err error) {
	for _, name := range slices.Sorted(maps.Keys(j.Names)) {
		ip := j.Names[name]
		if wanted[name] == ip {
			continue
		}
		if callErr := e.call(ctx, j.Command, "del", name, ip); callErr != nil {
			err = errors.Join(err, callErr)
			continue
		}
		delete(j.Names, name)
		delete(e.done, name)
		if saveErr := e.save(*j); saveErr != nil {
			return errors.Join(err, saveErr)
		}
	}
	return err
}

// set sets what is wanted. It is in the journal before that.
func (e *Exec) set(ctx context.Context, j *journal, wanted map[string]string) (err error) {
	for _, name := range slices.Sorted(maps.Keys(wanted)) {
		ip := wanted[name]
		if e.done[name] == ip {
			continue
		}
		if old, there := j.Names[name]; there && old != ip {
			continue // it could not be deleted
		}
		if j.Names == nil {
			j.Names = map[string]string{}
		}
		j.Names[name] = ip
		if saveErr := e.save(*j); saveErr != nil {
			return errors.Join(err, saveErr)
		}
		if callErr := e.call(ctx, j.Command, "set", name, ip); callErr != nil {
			err = errors.Join(err, callErr)
			continue
		}
		if e.done == nil {
			e.done = map[string]string{}
		}
		e.done[name] = ip
	}
	return err
}

func (e *Exec) call(ctx context.Context, command []string, verb, name, ip string) error {
	ctx, cancel := context.WithTimeout(ctx, execLimit)
	defer cancel()
	args := append(slices.Clone(command[1:]), verb, name, ip)
	err := e.door.step("run the command to "+verb, func() error { return host.Run(ctx, host.Command{Path: command[0], Args: args}) })
	if err != nil {
		return errs.New(errs.Unavailable, "%s %s %s by the command of dns_exec", verb, name, ip).Because(err).
			Try("run it by hand: %s", strings.Join(append([]string{command[0]}, args...), " "))
	}
	return nil
}

func (e *Exec) load() (j journal, err error) {
	text, err := os.ReadFile(e.Journal)
	if errors.Is(err, fs.ErrNotExist) {
		return journal{}, nil
	}
	if err == nil {
		err = json.Unmarshal(text, &j)
	}
	if err == nil && len(j.Names) > 0 && len(j.Command) == 0 {
		err = errors.New("it names no command")
	}
	if err != nil {
		return journal{}, fmt.Errorf("read what names were set by a command: %s: %w", e.Journal, err)
	}
	return j, nil
}

func (e *Exec) save(j journal) error {
	return e.door.step("save the journal", func() error { return e.write(j) })
}

func (e *Exec) write(j journal) error {
	if len(j.Names) == 0 {
		if err := os.Remove(e.Journal); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	}
	text, err := json.Marshal(j)
	if err != nil {
		return err
	}
	return renameio.WriteFile(e.Journal, text, 0o600)
}
