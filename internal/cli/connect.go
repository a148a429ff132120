package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"banger/api"
	"banger/internal/config"
	"banger/internal/errs"
)

// startLimit bounds how long a new daemon may take until it serves.
const startLimit = time.Minute

// connect returns a client of the daemon, which it starts if none answers.
func (a *app) connect(ctx context.Context) (*api.Client, error) {
	client, _, err := a.find(ctx)
	if errors.Is(err, api.ErrNoDaemon) {
		err = a.startDaemon(ctx, client)
	}
	return client, err
}

// find returns a client of the daemon that answers: the person's own, else, unless they
// named one, the system's where it serves them. Without any it is one of their own, and the
// error api.ErrNoDaemon.
func (a *app) find(ctx context.Context) (client *api.Client, system bool, err error) {
	client = api.New(a.config.Socket)
	if err = ping(ctx, client); !errors.Is(err, api.ErrNoDaemon) || !a.config.DefaultPlaces() {
		return client, false, err
	}
	theirs := api.New(a.systemSocket())
	if ping(ctx, theirs) != nil { // it is not there, or not for this person
		return client, false, err
	}
	return theirs, true, nil
}

// systemSocket is where the system's daemon is; tests have another place for it.
func (a *app) systemSocket() string {
	return cmp.Or(a.SystemSocket, config.SystemSocket)
}

// hangups is how often a daemon may hang up on us before that is an error. One that ends does
// so on those who came just before, and is then gone.
const hangups = 10

// ping is Client.Ping, past a daemon that is just ending.
func ping(ctx context.Context, client *api.Client) (err error) {
	for range hangups {
		if err = client.Ping(ctx); !errors.Is(err, api.ErrGone) {
			break
		}
	}
	return err
}

// startDaemon starts a daemon and returns when it serves. Of several that try at once one
// starts it and the others find it.
func (a *app) startDaemon(ctx context.Context, client *api.Client) error {
	if err := os.MkdirAll(a.config.StateDir, 0o700); err != nil {
		return errs.New(errs.Unavailable, "make the state directory").Because(err).
			Try("set BANGER_STATE_DIR to a place that you can write to")
	}
	unlock, err := lock(ctx, filepath.Join(a.config.StateDir, "start.lock"))
	if err != nil {
		return errs.New(errs.Unavailable, "start the daemon").Because(err)
	}
	defer unlock()
	if err := ping(ctx, client); !errors.Is(err, api.ErrNoDaemon) {
		return err
	}
	program, err := a.findDaemon()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	return a.launch(ctx, program)
}

// lock takes the lock file at path, waiting for whoever holds it.
func lock(ctx context.Context, path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	got := make(chan error, 1)
	go func() {
		for {
			if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != unix.EINTR {
				got <- err
				return
			}
		}
	}()
	select {
	case err := <-got:
		return func() { f.Close() }, err
	case <-ctx.Done(): // the descriptor stays with the goroutine, until the process ends
		return nil, ctx.Err()
	}
}

// findDaemon finds bangerd: beside this program, wherever links lead, then in PATH.
func (a *app) findDaemon() (string, error) {
	self, err := os.Executable()
	if err == nil {
		self, err = filepath.EvalSymlinks(self)
	}
	if err == nil {
		beside := filepath.Join(filepath.Dir(self), "bangerd")
		if info, err := os.Stat(beside); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return beside, nil
		}
	}
	path, err := exec.LookPath("bangerd")
	if err == nil {
		path, err = filepath.Abs(path)
	}
	if err != nil {
		return "", errs.New(errs.Unavailable, "no daemon runs, and there is no bangerd beside %s or in PATH", self).
			Try("install bangerd there, or build it with `make build`")
	}
	return path, nil
}

// launch starts the daemon in a session of its own and waits until it says that it serves.
// Its words come on descriptor 3: perhaps lines of "note: …", then "ready", or "error: …" and
// perhaps "hint: …".
func (a *app) launch(ctx context.Context, program string) error {
	failed := errs.New(errs.Unavailable, "start the daemon %s", program)
	logPath := a.daemonLog()
	log, err := os.OpenFile(logPath, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return failed.Because(err)
	}
	defer log.Close()
	r, w, err := os.Pipe()
	if err != nil {
		return failed.Because(err)
	}
	defer r.Close()
	// A descriptor that our parent left open (a lock, a pipe that someone reads to its end)
	// must not live on in the daemon. Kernels before 5.11 can't do this, and go without.
	_ = unix.CloseRange(3, math.MaxInt32, unix.CLOSE_RANGE_CLOEXEC)
	cmd := exec.Command(program, "--ready-fd", "3")
	cmd.Dir = "/" // so that it holds no file system of the person's
	cmd.Env = append(a.Env[:len(a.Env):len(a.Env)], a.configEnv()...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = []*os.File{w}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	w.Close()
	if err != nil {
		return failed.Because(err)
	}
	defer cmd.Process.Release()
	defer context.AfterFunc(ctx, func() { r.Close() })()
	said, err := io.ReadAll(io.LimitReader(untilReady{r}, 64<<10))
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return failed.Because(fmt.Errorf("it does not serve after %s", startLimit)).Try("read its log, %s", logPath)
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		return failed.Because(err)
	}
	rest := string(said)
	for strings.HasPrefix(rest, "note: ") {
		note, after, _ := strings.Cut(strings.TrimPrefix(rest, "note: "), "\n")
		a.note("%s", shown(note))
		rest = after
	}
	return started(failed, rest, logPath)
}

// untilReady ends after "ready", so that the daemon need not close the pipe. What comes with
// that line is written at once, so it is read at once.
type untilReady struct{ r io.Reader }

func (u untilReady) Read(p []byte) (int, error) {
	n, err := u.r.Read(p)
	if err == nil && strings.HasSuffix("\n"+string(p[:n]), "\nready\n") {
		err = io.EOF
	}
	return n, err
}

// started reads what the daemon said at its start.
func started(failed *errs.Error, said, logPath string) error {
	if strings.HasPrefix(said, "ready\n") {
		return nil
	}
	rest, ok := strings.CutPrefix(said, "error: ")
	if !ok {
		return failed.Because(errors.New("it ended before it served"+lastLine(logPath))).Try("its log is %s", logPath)
	}
	why, hint, _ := strings.Cut(rest, "\nhint: ")
	failed = failed.Because(errors.New(strings.TrimSpace(why)))
	if hint = strings.TrimSpace(hint); hint == "" {
		hint = "its log is " + logPath
	}
	return failed.Try("%s", hint)
}

// lastLine gives the last line of the log, after a colon, if there is one.
func lastLine(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	const most = 512 // bytes of it
	if info, err := f.Stat(); err == nil && info.Size() > most {
		if _, err := f.Seek(-most, io.SeekEnd); err != nil {
			return ""
		}
	}
	tail, err := io.ReadAll(io.LimitReader(f, most))
	text := strings.TrimSpace(string(tail))
	if err != nil || text == "" {
		return ""
	}
	return ": " + text[strings.LastIndexByte(text, '\n')+1:]
}

func (a *app) daemonLog() string { return filepath.Join(a.config.StateDir, "bangerd.log") }
