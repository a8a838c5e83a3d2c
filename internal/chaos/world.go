package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/berth-dev/berth/host/config"
	"github.com/berth-dev/berth/host/connect"
	"github.com/berth-dev/berth/host/fleet"
	"github.com/berth-dev/berth/host/records"
	"github.com/berth-dev/berth/host/redact"
	"github.com/berth-dev/berth/host/supervise"
	"github.com/berth-dev/berth/shared/provider"
)

// worker plays one case at a time, in clouds of its own.
type worker struct {
	bin, dir string
	seed     uint64
	postgres server
	clouds   map[string]*cloud
	hands    map[string]*hand
	worlds   int
}

// hand does what the harness itself does at a provider: prepare and clear up.
type hand struct {
	*supervise.Plugin
	fleet *fleet.Fleet
	conf  *config.Provider
}

func (w *worker) cloud(ctx context.Context, name string) (*cloud, *hand, error) {
	if c := w.clouds[name]; c != nil {
		return c, w.hands[name], nil
	}
	c, err := startCloud(ctx, w.bin, w.dir, name)
	if err != nil {
		return nil, nil, err
	}
	w.clouds[name] = c
	path := filepath.Join(w.dir, name+".hcl")
	if err := os.WriteFile(path, []byte(w.configuration(c, w.dir, "harness", "", nil)), 0o600); err != nil {
		return nil, nil, err
	}
	conf, err := load(path, c.getenv)
	if err != nil {
		return nil, nil, err
	}
	f := fleet.New(conf, fleet.Options{})
	plugin, err := f.Plugin(conf.Providers[0])
	h := &hand{plugin, f, conf.Providers[0]}
	w.hands[name] = h
	return c, h, err
}

// getenv looks a variable of the cloud up.
func (c *cloud) getenv(name string) (string, bool) {
	for _, variable := range c.env {
		if value, found := strings.CutPrefix(variable, name+"="); found {
			return value, true
		}
	}
	return "", false
}

// load reads a configuration with one provider, whose plugin may take its time on a crowded machine.
func load(path string, getenv func(string) (string, bool)) (*config.Config, error) {
	conf, problems := config.Load(path, "plugins", getenv, &redact.Set{})
	if problems.HasErrors() {
		return nil, problems
	}
	conf.Providers[0].StartTimeout = time.Minute
	return conf, nil
}

func (w *worker) close() {
	var ends sync.WaitGroup
	for _, h := range w.hands {
		ends.Go(func() { _ = h.fleet.Close() }) // whatever is left is found by its processes
	}
	ends.Wait()
	for _, c := range w.clouds {
		ends.Go(c.close)
	}
	ends.Wait()
}

const secret = "a secret of the chaos, long enough"

// configuration is a configuration file. Plugins carry the environment, so that they can be told apart.
func (w *worker) configuration(c *cloud, state, owner, url string, env map[string]string) string {
	variables, database := "", ""
	if url != "" {
		database = fmt.Sprintf("state {\nurl = %q\n}\n", url)
	}
	for name, value := range env {
		variables += fmt.Sprintf("%s = %q\n", name, value)
	}
	return fmt.Sprintf(`
		host {
			secret     = %q
			owner      = %q
			state_dir  = %q
			plugin_dir = %q
		}
		%s
		provider %q {
			lifetime = "2h"
			env      = { %s }
			%s
		}`, secret, owner, state, filepath.Join(w.bin, "plugins"), database, c.provider, variables, c.block)
}

// world is where one case takes place: an installation of berth with records of its own, and an owner's part of a cloud.
type world struct {
	*worker
	*cloud
	hand  *hand
	dir   string
	owner string
	mount bool
	// database is the URL of a PostgreSQL database; empty for SQLite.
	database string

	// stderr is what becomes of the standard error of the hosts beside the disturbed one, which must do their work.
	stderr output

	bystander connect.Result
	notes     []string
}

const (
	bystander = "bystander" // its session is live all the time
	victim    = "victim"    // its session is worked on when something happens
	stranger  = "stranger"  // its sandbox belongs to another owner
	orphan    = "orphan"    // its sandbox is in no record
	outdated  = "outdated"  // its sandbox is in a record, and gone
)

// newWorld makes a world. small gives it a disk of its own that can be filled up.
func (w *worker) newWorld(ctx context.Context, providerName string, onPostgres, small bool) (*world, error) {
	c, h, err := w.cloud(ctx, providerName)
	if err != nil {
		return nil, err
	}
	w.worlds++
	n := &world{worker: w, cloud: c, hand: h, dir: filepath.Join(w.dir, strconv.Itoa(w.worlds))}
	if onPostgres {
		n.database = w.postgres.url
	}
	n.owner = fmt.Sprintf("chaos-%s-%d", filepath.Base(w.dir), w.worlds)
	if err := os.MkdirAll(n.state(), 0o700); err != nil {
		return nil, err
	}
	if small {
		if output, err := exec.CommandContext(ctx, "mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", n.state()).CombinedOutput(); err != nil {
			return nil, fmt.Errorf("%w: %s", err, output)
		}
		n.mount = true
	}
	conf := w.configuration(c, n.state(), n.owner, n.database, map[string]string{"BERTH_CHAOS_WORLD": n.dir})
	return n, os.WriteFile(n.conf(), []byte(conf), 0o600)
}

func (n *world) conf() string { return filepath.Join(n.dir, "config.hcl") }

func (n *world) state() string { return filepath.Join(n.dir, "state") }

// clean removes all that the world has, and says what could not be.
func (n *world) clean(ctx context.Context) (err error) {
	for _, owner := range []string{n.owner, stranger + n.owner} {
		boxes, listed := n.boxes(ctx, owner)
		err = errors.Join(err, listed)
		for _, b := range boxes {
			if b.state != vanishing {
				err = errors.Join(err, n.hand.Destroy(ctx, provider.SandboxRef{Owner: owner, SandboxID: b.id}))
			}
		}
	}
	if n.mount {
		err = errors.Join(err, exec.CommandContext(ctx, "umount", n.state()).Run())
	}
	return errors.Join(err, os.RemoveAll(n.dir))
}

// patiently repeats work that fails while a database server restarts.
func (n *world) patiently(work func() error) error {
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(200 * time.Millisecond) {
		err := work()
		if err == nil || n.database == "" || time.Now().After(deadline) {
			return err
		}
	}
}

// records opens the world's records as one more host.
func (n *world) records(ctx context.Context) (store *records.SQL, err error) {
	err = n.patiently(func() error {
		store, err = records.Open(ctx, records.Options{Dir: n.state(), Owner: n.owner, URL: n.database})
		return err
	})
	return store, err
}

// asHost works as one more host does, whose plugin is the hand's.
func (n *world) asHost(ctx context.Context, work func(*fleet.Fleet, records.Store) error) error {
	conf, err := load(n.conf(), n.getenv)
	if err != nil {
		return err
	}
	var store records.Store
	f := fleet.New(conf, fleet.Options{
		Provider: func(string, *supervise.Plugin) provider.Provider { return n.hand },
		Records: func(opened records.Store) records.Store {
			store = opened
			return opened
		},
	})
	err = n.patiently(func() error {
		_, _, err := f.CheckRecords(ctx)
		return err
	})
	if err == nil {
		err = work(f, store)
	}
	return errors.Join(err, f.Close()) //nolint:contextcheck // it ends whatever it began
}

// connectSession connects a session as configured.
func connectSession(ctx context.Context, f *fleet.Fleet, id string) (connect.Result, error) {
	s, err := f.Session(ctx, id, "")
	if err != nil {
		return connect.Result{}, err
	}
	return s.Connect(ctx, s.Request(), nil)
}

// healthy says whether the server of a connection answers those that it was given to.
func healthy(ctx context.Context, url string, headers map[string]string) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"/alive", nil)
	if err != nil {
		return err
	}
	for name, value := range headers {
		request.Header.Set(name, value)
	}
	response, err := provider.NewProbeClient().Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("its server answers %s", response.Status)
	}
	return nil
}

// host is a berth process.
type host struct {
	*exec.Cmd
	outputs        outputs
	stdout, stderr bytes.Buffer // what was read of them
	ended          chan struct{}

	// Of one that tells its steps:
	goOn    *os.File
	moments []moment // to be read when ended is closed
	heard   chan moment
}

// connected is what berth connect prints.
type connected struct {
	Sandbox struct{ ID string }
	URL     string
	Headers map[string]string
}

func (h *host) ok() bool { return h.ProcessState.ExitCode() == 0 }

func (h *host) connected() (c connected) {
	_ = json.Unmarshal(h.stdout.Bytes(), &c) // empty is good enough
	return c
}

func (h *host) String() string {
	return fmt.Sprintf("%s: exit code %d, outputs %q\n%s%s", strings.Join(h.Args, " "), h.ProcessState.ExitCode(), h.outputs,
		h.stdout.String(), h.stderr.String())
}

// commandLimit is far more than any command takes.
const commandLimit = 2 * time.Minute

// start starts a berth command. waitAt is empty for the real one; else it tells its steps, and waits at that moment.
func (n *world) start(ctx context.Context, waitAt string, out outputs, env []string, args ...string) (*host, error) {
	h := &host{outputs: out, ended: make(chan struct{}), heard: make(chan moment, 10_000)}
	program := filepath.Join(n.bin, "berth")
	if waitAt != "" {
		program = must(os.Executable())
	}
	ctx, cancel := context.WithTimeout(ctx, commandLimit)
	h.Cmd = exec.CommandContext(ctx, program, args...)
	h.Dir, h.WaitDelay = n.dir, 2*time.Second
	h.Env = append(append(n.environment(), roleVariable+"=host", stepVariable+"="+waitAt), env...)
	var listening sync.WaitGroup
	var told *os.File
	var theirs, ours []io.Closer
	defer func() {
		for _, file := range theirs {
			file.Close()
		}
	}()
	for _, stream := range []struct {
		output output
		kept   *bytes.Buffer
		to     *io.Writer
	}{{out.stdout, &h.stdout, &h.Stdout}, {out.stderr, &h.stderr, &h.Stderr}} {
		to, closeTheirs, closeOurs, err := stream.output.open(stream.kept, &listening)
		*stream.to, theirs, ours = to, append(theirs, closeTheirs...), append(ours, closeOurs...)
		if err != nil {
			cancel()
			return nil, err
		}
	}
	if out.stderr != read {
		h.Env = append(h.Env, "BERTH_LOG=trace") // so that there is something to write
	}
	if waitAt != "" {
		var tell, wait *os.File
		var err error
		if told, tell, err = os.Pipe(); err != nil {
			cancel()
			return nil, err
		}
		if wait, h.goOn, err = os.Pipe(); err != nil {
			cancel()
			return nil, err
		}
		theirs = append(theirs, tell, wait)
		h.ExtraFiles = []*os.File{tell, wait}
	}
	if err := h.Start(); err != nil {
		cancel()
		return nil, err
	}
	if told != nil {
		listening.Go(func() {
			readMoments(told, func(m moment) {
				h.moments = append(h.moments, m)
				h.heard <- m
			})
			told.Close()
		})
	}
	go func() {
		_ = h.Wait() // its exit code is in ProcessState
		listening.Wait()
		for _, file := range ours {
			file.Close()
		}
		cancel()
		close(h.ended)
	}()
	go out.impatient(ctx, h)
	return h, nil
}

// environment is that of the hosts, and of nobody else.
func (n *world) environment() []string {
	return append([]string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + n.dir, "XDG_RUNTIME_DIR=" + n.dir, "TMPDIR=" + n.dir, "BERTH_CONFIG=config.hcl",
		dirVariable + "=" + n.state(), ownerVariable + "=" + n.owner, urlVariable + "=" + n.database,
	}, n.env...)
}

// letGo lets a host go on that waits, and wait waits for its end.
func (h *host) letGo() {
	if h.goOn != nil {
		h.goOn.Close()
		h.goOn = nil
	}
}

func (h *host) wait() {
	h.letGo()
	<-h.ended
}

// reach returns when the host is at a moment. It answers false for one that ended before.
func (h *host) reach(wanted string) (moment, bool) {
	for {
		select {
		case m := <-h.heard:
			if m.String() == wanted {
				return m, true
			}
		case <-h.ended:
			for len(h.heard) > 0 {
				if m := <-h.heard; m.String() == wanted {
					return m, true
				}
			}
			return moment{}, false
		}
	}
}

// berth runs a berth command to its end.
func (n *world) berth(ctx context.Context, args ...string) (*host, error) {
	h, err := n.start(ctx, "", outputs{stderr: n.stderr}, nil, args...)
	if err == nil {
		<-h.ended
	}
	return h, err
}

func (n *world) note(format string, args ...any) {
	n.notes = append(n.notes, fmt.Sprintf(format, args...))
}
