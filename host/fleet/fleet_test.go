package fleet

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/berth-dev/berth/host/config"
	"github.com/berth-dev/berth/host/connect"
	"github.com/berth-dev/berth/host/records"
	"github.com/berth-dev/berth/host/redact"
	"github.com/berth-dev/berth/host/sessions"
	"github.com/berth-dev/berth/host/supervise"
	"github.com/berth-dev/berth/host/sweep"
	"github.com/berth-dev/berth/internal/fakecloud"
	"github.com/berth-dev/berth/internal/testbin"
	"github.com/berth-dev/berth/shared/provider"
)

func TestMain(m *testing.M) {
	code := testbin.Main(m)
	if err := goleak.Find(); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// installation is a directory with a configuration and what belongs to it.
type installation struct {
	*testing.T
	dir    string
	clouds map[string]*fakecloud.Cloud // by label, in place of their plugins
}

func newInstallation(t *testing.T) *installation {
	t.Helper()
	return &installation{T: t, dir: t.TempDir(), clouds: map[string]*fakecloud.Cloud{}}
}

// block returns a provider block whose plugin is an executable that cannot be run, and puts a cloud in its place.
func (i *installation) block(label string) string {
	i.Helper()
	i.clouds[label] = fakecloud.New()
	return i.brokenBlock(label)
}

func (i *installation) brokenBlock(label string) string {
	i.Helper()
	path := filepath.Join(i.dir, "not-a-plugin")
	ok(i.T, os.WriteFile(path, []byte("#!/bin/false\n"), 0o700))
	return fmt.Sprintf("provider %q {\n path = %q\n}\n", label, path)
}

// load reads a configuration with these provider blocks.
func (i *installation) load(blocks ...string) *config.Config {
	i.Helper()
	path := filepath.Join(i.dir, "config.hcl")
	host := fmt.Sprintf("host {\n state_dir = %q\n owner = %q\n}\n", filepath.Join(i.dir, "state"), testOwner)
	ok(i.T, os.WriteFile(path, []byte(host+strings.Join(blocks, "")), 0o600))
	conf, diagnostics := config.Load(path, i.dir, func(string) (string, bool) { return "", false }, &redact.Set{})
	if diagnostics.HasErrors() {
		i.Fatal(diagnostics)
	}
	return conf
}

// fleet returns the fleet of a configuration. It is closed when the test ends.
func (i *installation) fleet(blocks ...string) *Fleet {
	i.Helper()
	f := New(i.load(blocks...), Options{Provider: i.provider})
	i.Cleanup(func() { ok(i.T, f.Close()) })
	return f
}

func (i *installation) provider(label string, plugin *supervise.Plugin) provider.Provider {
	if c := i.clouds[label]; c != nil {
		return c
	}
	return plugin
}

const testOwner = "ours"

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func code(err error) connect.Code {
	var e *connect.Error
	if errors.As(err, &e) {
		return e.Code
	}
	return ""
}

func connectSession(t *testing.T, f *Fleet, label string) connect.Result {
	t.Helper()
	s, err := f.Session(t.Context(), "s1", label)
	ok(t, err)
	result, err := s.Connect(t.Context(), s.Request(), nil)
	ok(t, err)
	return result
}

func TestASessionIsOnItsOwnProviderElseOnTheOneNamedElseOnTheDefaultOne(t *testing.T) {
	t.Parallel()
	i := newInstallation(t)
	one, two := i.block("one"), i.block("two")
	f := i.fleet(one, two)
	var choice *ChoiceError

	_, err := f.Session(t.Context(), "new", "")
	if !errors.As(err, &choice) {
		t.Errorf("without a default provider: %v", err)
	}
	_, err = f.Session(t.Context(), "new", "three")
	if !errors.As(err, &choice) {
		t.Errorf("a provider that is not configured: %v", err)
	}
	connectSession(t, f, "two")
	s, err := f.Session(t.Context(), "s1", "")
	ok(t, err)
	if s.Provider() != "two" {
		t.Errorf("the session's own provider is %s", s.Provider())
	}
	s, err = f.Session(t.Context(), "s1", "one")
	ok(t, err)
	if _, err = s.Connect(t.Context(), s.Request(), nil); code(err) != connect.CodeAlreadyExists {
		t.Errorf("on another provider than its own: %v", err)
	}

	// The same records under a configuration with one of the providers, which is then the default one.
	ok(t, f.Close())
	alone := i.fleet(one)
	s, err = alone.Session(t.Context(), "new", "")
	ok(t, err)
	if s.Provider() != "one" {
		t.Errorf("the default provider is %s", s.Provider())
	}
	_, err = alone.Session(t.Context(), "s1", "")
	var e *connect.Error
	if !errors.As(err, &e) || e.Code != connect.CodeInvalidConfig || e.Reason != ReasonNotConfigured || e.Provider != "two" {
		t.Errorf("a session whose provider is no longer configured: %+v", err)
	}
	report, err := alone.Sweep(t.Context(), sweep.Options{DryRun: true}, nil)
	ok(t, err)
	if !errors.As(report.Failures["two"], &e) || len(report.Failures) != 1 || e.Reason != ReasonNotConfigured || e.Session != "s1" {
		t.Errorf("a sweep that leaves a session's provider out says: %v", report.Failures)
	}
	report, err = alone.Sweep(t.Context(), sweep.Options{DryRun: true, Provider: "one"}, nil)
	ok(t, err)
	if len(report.Failures) != 0 {
		t.Errorf("a sweep of one provider says of another: %v", report.Failures)
	}
}

func TestASessionIsConnectedPingedAndDisconnected(t *testing.T) {
	t.Parallel()
	i := newInstallation(t)
	var mutex sync.Mutex
	var told []string
	f := i.fleet(i.block("one"))
	f.options.TellKey = func(key string) {
		mutex.Lock()
		defer mutex.Unlock()
		told = append(told, key)
	}
	result := connectSession(t, f, "")
	s, err := f.Session(t.Context(), "s1", "")
	ok(t, err)
	probe, err := s.Ping(t.Context())
	ok(t, err)
	if probe.Sandbox.ID != result.SandboxID {
		t.Errorf("connected to %s, pinged %s", result.SandboxID, probe.Sandbox.ID)
	}
	if _, _, err = s.Renew(t.Context(), time.Hour, nil); code(err) != connect.CodeUnsupported {
		t.Errorf("a provider that cannot renew: %v", err)
	}
	id, err := s.Disconnect(t.Context(), sessions.ActionDestroy, nil)
	ok(t, err)
	if left := i.clouds["one"].Left(); id != result.SandboxID || len(left) > 0 {
		t.Errorf("disconnected %s, %v is left", id, left)
	}
	mutex.Lock()
	defer mutex.Unlock()
	if !slices.ContainsFunc(slices.Collect(maps.Values(result.Endpoint.Headers)), func(v string) bool { return slices.Contains(told, v) }) {
		t.Error("the fleet has not told the session's key")
	}
}

func TestDisconnectAlsoEndsWhatEarlierAttemptsOweElsewhere(t *testing.T) {
	t.Parallel()
	i := newInstallation(t)
	f := i.fleet(i.block("one"), i.block("two"))
	one := i.clouds["one"]
	one.OnStart = func(context.Context) error { return provider.Errorf(provider.CodeFailed, "no such command") }
	one.OnDestroy = func(context.Context) error { return provider.Errorf(provider.CodeDenied, "403") }
	first, err := f.Session(t.Context(), "s1", "one")
	ok(t, err)
	_, err = first.Connect(t.Context(), first.Request(), nil)
	if err == nil {
		t.Fatal("it connected")
	}
	left := one.Left()
	result := connectSession(t, f, "two")

	states, _, err := f.Sessions(t.Context(), "")
	ok(t, err)
	if len(states) != 2 || states[0].SandboxID != left[0] || states[0].State != StateDestroying || !states[0].Interrupted || !states[0].Recorded ||
		states[1].SandboxID != result.SandboxID || states[1].State != StateRunning {
		t.Errorf("%+v", states)
	}
	if sandboxes, interrupted, err := f.CheckRecords(t.Context()); err != nil || sandboxes != 1 || interrupted != 1 {
		t.Errorf("%d sandboxes, %d interrupted, %v", sandboxes, interrupted, err)
	}

	second, err := f.Session(t.Context(), "s1", "")
	ok(t, err)
	id, err := second.Disconnect(t.Context(), sessions.ActionDestroy, nil)
	var stuck *connect.Error
	if !errors.As(err, &stuck) || stuck.Code != connect.CodeDenied || stuck.Provider != "one" || stuck.SandboxID != left[0] ||
		len(i.clouds["two"].Left()) != 0 {
		t.Errorf("while one is stuck: %s, %+v; two has %v", id, stuck, i.clouds["two"].Left())
	}
	one.OnDestroy = nil
	id, err = second.Disconnect(t.Context(), sessions.ActionDestroy, nil)
	ok(t, err)
	if id != left[0] || len(one.Left()) != 0 {
		t.Errorf("disconnected %s, and %v is left", id, one.Left())
	}
	if _, err = second.Disconnect(t.Context(), sessions.ActionDestroy, nil); code(err) != connect.CodeNotFound {
		t.Errorf("once more: %v", err)
	}
}

func TestEqualConnectsAtTheSameTimeShareOneAttempt(t *testing.T) {
	t.Parallel()
	i := newInstallation(t)
	f := i.fleet(i.block("one"))
	c := i.clouds["one"]
	joined := make(chan struct{})
	c.OnCreate = func(_ context.Context, made func() provider.Sandbox) (provider.Sandbox, error) {
		<-joined
		return made(), nil
	}
	var callers sync.WaitGroup
	var ids [2]string
	for n := range ids {
		callers.Go(func() { ids[n] = connectSession(t, f, "").SandboxID })
	}
	close(joined)
	callers.Wait()
	if ids[0] != ids[1] || len(c.Left()) != 1 {
		t.Errorf("two callers got %v", ids)
	}
}

func TestABrokenProviderDoesNotKeepTheGoodOneFromWork(t *testing.T) {
	t.Parallel()
	i := newInstallation(t)
	missing := fmt.Sprintf("provider \"missing\" {\n path = %q\n}\n", filepath.Join(i.dir, "nothing"))
	f := i.fleet(i.block("good"), i.brokenBlock("broken"), missing)
	connectSession(t, f, "good")
	i.clouds["good"].Put(provider.Sandbox{
		Session: "lost", Owner: testOwner, State: provider.StateRunning, CreatedAt: time.Now().Add(-time.Hour),
	})

	states, failures, err := f.Sessions(t.Context(), "")
	ok(t, err)
	var shown []string
	for _, s := range states {
		shown = append(shown, fmt.Sprintf("%s %s %t", s.Session, s.State, s.Recorded))
	}
	if !slices.Equal(shown, []string{"lost running false", "s1 running true"}) {
		t.Errorf("the sessions are %q", shown)
	}
	var missingPlugin *ConfigError
	if len(failures) != 2 || code(failures["broken"]) != connect.CodePluginFailed || !errors.As(failures["missing"], &missingPlugin) {
		t.Errorf("the failures are %v", failures)
	}

	report, err := f.Sweep(t.Context(), sweep.Options{Unrecorded: true}, nil)
	ok(t, err)
	if left := i.clouds["good"].Left(); len(left) != 1 || len(report.Failures) != 2 {
		t.Errorf("after the sweep %v is left, the failures are %v", left, report.Failures)
	}
	report, err = f.Recover(t.Context(), nil)
	ok(t, err)
	if len(report.Failures) != 0 {
		t.Errorf("nothing was to be recovered, and yet: %v", report.Failures)
	}
	if _, err := f.CheckProvider(t.Context(), "broken"); code(err) != connect.CodePluginFailed {
		t.Errorf("checking the broken provider: %v", err)
	}
	if sandboxes, interrupted, err := f.CheckRecords(t.Context()); sandboxes != 1 || interrupted != 0 || err != nil {
		t.Errorf("the records have %d sandboxes, %d interrupted, %v", sandboxes, interrupted, err)
	}
}

// mockBlock returns a provider block with the mock plugin, whose cloud is a file.
func (i *installation) mockBlock(label, attributes string) string {
	i.Helper()
	return fmt.Sprintf("provider %q {\n path = %q\n mtls = false\n start_timeout = \"1m\"\n config {\n state = %q\n %s\n}\n}\n",
		label, testbin.Build(i.T, "./plugins/mock"), filepath.Join(i.dir, label+".json"), attributes)
}

func TestAConfigurationIsCheckedWithAllItsPlugins(t *testing.T) {
	t.Parallel()
	i := newInstallation(t)
	f := i.fleet(i.mockBlock("good", ""), i.mockBlock("wrong", "no_such_attribute = 1"), i.mockBlock("refused", `faults = ["nonsense"]`))
	err := f.CheckConfig(t.Context(), nil)
	var mistakes *ConfigError
	if !errors.As(err, &mistakes) || len(mistakes.Diagnostics) != 2 {
		t.Fatalf("the mistakes are %v", err)
	}
	if text := err.Error(); !strings.Contains(text, "no_such_attribute") || !strings.Contains(text, "one more mistake") {
		t.Errorf("the error is %q", text)
	}
}

func TestCloseStopsThePluginsAndLaterCallsFail(t *testing.T) {
	t.Parallel()
	i := newInstallation(t)
	f := i.fleet(i.mockBlock("mock", ""))
	_, err := f.CheckProvider(t.Context(), "mock")
	ok(t, err)
	plugin, err := f.Plugin(f.conf.Providers[0])
	ok(t, err)
	pid := plugin.Pid()
	if err := syscall.Kill(pid, 0); err != nil {
		t.Fatalf("there is no process %d: %v", pid, err)
	}
	ok(t, f.Close())
	if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("the process is left: %v", err)
	}
	if _, err := f.Session(t.Context(), "s1", ""); err == nil {
		t.Error("a closed fleet has sessions")
	}
	if err := f.CheckConfig(t.Context(), nil); err == nil {
		t.Error("a closed fleet starts plugins")
	}
	if _, err := plugin.Describe(t.Context()); err == nil {
		t.Error("a plugin of a closed fleet starts")
	}
}

// slowStore takes its time to close.
type slowStore struct {
	records.Store
	closing chan struct{}
	goOn    chan struct{}
	err     error
}

func (s slowStore) Close() error {
	close(s.closing) // panics the second time
	<-s.goOn
	return errors.Join(s.err, s.Store.Close())
}

func TestEveryCloseWaitsForTheSameEndAndReturnsItsError(t *testing.T) {
	t.Parallel()
	i := newInstallation(t)
	slow := slowStore{closing: make(chan struct{}), goOn: make(chan struct{}), err: errors.New("the disk is gone")}
	f := New(i.load(i.block("one")), Options{Provider: i.provider, Records: func(s records.Store) records.Store {
		slow.Store = s
		return slow
	}})
	_, _, err := f.CheckRecords(t.Context())
	ok(t, err)
	ended := make(chan error, 3)
	for range cap(ended) {
		go func() { ended <- f.Close() }()
	}
	<-slow.closing
	select {
	case err := <-ended:
		t.Errorf("a Close did not wait: %v", err)
	default:
	}
	close(slow.goOn)
	for range cap(ended) {
		if err := <-ended; !errors.Is(err, slow.err) {
			t.Errorf("Close returned %v", err)
		}
	}
}

func TestWhoeverWaitsForTheRecordsToBeOpenedCanGiveUp(t *testing.T) {
	t.Parallel()
	i := newInstallation(t)
	opening, goOn := make(chan struct{}), make(chan struct{})
	f := New(i.load(i.block("one")), Options{Provider: i.provider, Records: func(s records.Store) records.Store {
		close(opening)
		<-goOn
		return s
	}})
	opened := make(chan error)
	go func() {
		_, _, err := f.CheckRecords(context.Background())
		opened <- err
	}()
	<-opening
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := f.Session(ctx, "s1", ""); !errors.Is(err, context.Canceled) {
		t.Errorf("the session: %v", err)
	}
	close(goOn)
	ok(t, <-opened)
	ok(t, f.Close())
}

func TestAFleetThatDidNothingHasLeftNothing(t *testing.T) {
	t.Parallel()
	i := newInstallation(t)
	f := New(i.load(i.block("one")), Options{})
	ok(t, f.Close())
	if _, err := os.Stat(filepath.Join(i.dir, "state")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("there is a state directory: %v", err)
	}
}

func TestAnInstallationKeepsItsOwner(t *testing.T) {
	t.Parallel()
	i := newInstallation(t)
	conf := i.load(i.block("one"))
	conf.Host.Owner = ""
	first, err := New(conf, Options{}).Owner()
	ok(t, err)
	again, err := New(conf, Options{}).Owner()
	ok(t, err)
	if first != again || !strings.HasPrefix(first, "berth-") {
		t.Errorf("the owner is %q and then %q", first, again)
	}
	conf.Host.Secret = "another secret, which is long enough too"
	if other, err := New(conf, Options{}).Owner(); err != nil || other == first {
		t.Errorf("with another secret the owner is %q, %v", other, err)
	}
}

func TestReattachNamesTheSocketOfAPlugin(t *testing.T) {
	t.Parallel()
	f := New(&config.Config{}, Options{Reattach: "one=/run/one.sock,two=/run/two.sock"})
	for label, want := range map[string]string{"one": "/run/one.sock", "two": "/run/two.sock", "three": ""} {
		if got := f.reattach(label); got != want {
			t.Errorf("%s: %q", label, got)
		}
	}
}
