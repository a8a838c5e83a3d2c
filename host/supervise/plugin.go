// Package supervise runs plugin processes. A Plugin looks like the provider it stands for: it starts the process when
// the first call comes, watches it, starts it again after a crash, and ends it whatever it does.
package supervise

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/sethvargo/go-retry"

	"github.com/berth-dev/berth/shared/provider"
)

// Spec says what to run and how.
type Spec struct {
	// Name is the label of the provider block. It names the plugin in logs and errors.
	Name string
	// Path is the executable. It is made absolute and never looked up in PATH.
	Path string
	// SHA256 is the executable's checksum in hex. Empty accepts any.
	SHA256 string
	// Remedy is how users have a binary with another checksum accepted: "run ...". Empty is a change of their
	// configuration.
	Remedy string
	// Refusal says why the executable must not be run, whatever its checksum. Empty normally.
	Refusal string
	// Env is added to the few variables that plugins inherit, and wins over them. No place for secrets: those go
	// through Configure.
	Env map[string]string
	// MTLS has host and plugin authenticate each other. Without it a plugin must listen on a unix socket.
	MTLS bool
	// StartTimeout bounds a start: launch, Describe and Configure together. Zero means 10 s.
	StartTimeout time.Duration
	// DrainTimeout bounds how long Stop waits for calls under way. Zero means 10 s.
	DrainTimeout time.Duration
	// Configure gives the JSON for the plugin's Configure from what the plugin says of itself. It is called at every
	// start. Nil is for a plugin that is only to be described: no other call is allowed then.
	Configure func(provider.Description) ([]byte, error)
	// Reattach is the socket of a plugin that already runs under a debugger: it is used as it is, neither started nor
	// watched nor stopped. Empty normally.
	Reattach string
	// Log may be nil.
	Log hclog.Logger
}

// limits are the times and numbers that tests shorten.
type limits struct {
	healthPeriod  time.Duration // between two health checks
	healthTimeout time.Duration // of one health check
	healthMisses  int           // in a row that get a plugin killed
	backoffBase   time.Duration // before the second restart; doubles
	backoffCap    time.Duration
	stable        time.Duration // a run this long clears the record
	failures      int           // within failureWindow that stop the restarts
	failureWindow time.Duration
	stopGrace     time.Duration // from asking a process to exit to killing it
}

var defaultLimits = limits{
	healthPeriod:  15 * time.Second,
	healthTimeout: 5 * time.Second,
	healthMisses:  3,
	backoffBase:   500 * time.Millisecond,
	backoffCap:    30 * time.Second,
	stable:        time.Minute,
	failures:      5,
	failureWindow: 2 * time.Minute,
	stopGrace:     3 * time.Second,
}

const (
	defaultStartTimeout = 10 * time.Second
	defaultDrainTimeout = 10 * time.Second
	backoffJitter       = 10 // percent
)

// Plugin is a provider whose calls are answered by a plugin process. There is at most one process at a time. It is
// started by the first call, and again by the first call after it ended: at once the first time, then after growing
// pauses, and after too many failures in a short time not until some of them are long enough ago.
//
// All errors are *provider.Error, except that Spec.Configure's own come back as they are. Those that are about the
// process and not from it are CodeUnreachable with ReasonPluginCrashed (the call may or may not have had its effect) or
// ReasonPluginFailed (there was no call). Safe for concurrent use.
type Plugin struct {
	spec   Spec
	limits limits
	log    hclog.Logger

	accepting context.Context // ends when Stop begins: no call is accepted and no start goes on
	refuse    context.CancelFunc
	living    context.Context // ends when Stop has drained: no process stays
	abandon   context.CancelFunc
	runs      sync.WaitGroup // the goroutines that own a run

	mu       sync.Mutex
	current  *run // being started or running
	stopped  bool
	inFlight int
	drained  chan struct{} // closed once stopped and inFlight is 0
	record   record
}

// record is what the plugin's failures so far have led to.
type record struct {
	failures  []time.Time
	last      *provider.Error
	pauses    retry.Backoff // nil without a failure
	notBefore time.Time     // when the next start is due
}

// New prepares a plugin. It starts nothing.
func New(spec Spec) *Plugin {
	if spec.StartTimeout <= 0 {
		spec.StartTimeout = defaultStartTimeout
	}
	if spec.DrainTimeout <= 0 {
		spec.DrainTimeout = defaultDrainTimeout
	}
	if spec.Log == nil {
		spec.Log = hclog.NewNullLogger()
	}
	p := &Plugin{spec: spec, limits: defaultLimits, log: spec.Log.With("plugin", spec.Name), drained: make(chan struct{})}
	p.accepting, p.refuse = context.WithCancel(context.Background())
	p.living, p.abandon = context.WithCancel(context.Background())
	return p
}

// Stop refuses new calls, waits for those under way until DrainTimeout or ctx ends, and then ends the process: within
// a few seconds, whatever the plugin does. It returns an error when calls were cut off. Idempotent.
func (p *Plugin) Stop(ctx context.Context) error {
	p.mu.Lock()
	if !p.stopped {
		p.stopped = true
		if p.inFlight == 0 {
			close(p.drained)
		}
	}
	p.mu.Unlock()
	p.refuse()
	err := p.drain(ctx)
	p.abandon()
	p.runs.Wait()
	return err
}

func (p *Plugin) drain(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, p.spec.DrainTimeout)
	defer cancel()
	select {
	case <-p.drained:
		return nil
	case <-ctx.Done():
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.inFlight == 0 {
		return nil
	}
	return fmt.Errorf("plugin %q was stopped with %d calls under way, which may or may not have had their effect",
		p.spec.Name, p.inFlight)
}

// Pid is the id of the plugin's process, 0 while there is none.
func (p *Plugin) Pid() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.current == nil {
		return 0
	}
	return p.current.pid()
}

// acquire gives a run that is ready for a call, starting one if necessary, and counts the call as under way. The
// caller must release it. A start is shared by all who wait for it, and goes on when they give up.
func (p *Plugin) acquire(ctx context.Context) (*run, error) {
	for {
		r, err := p.currentOrNew() //nolint:contextcheck // a start belongs to all who wait for it
		if err != nil {
			return nil, err
		}
		select {
		case <-r.started:
		case <-p.accepting.Done():
			return nil, p.stoppedError()
		case <-ctx.Done():
			return nil, p.gaveUp(ctx)
		}
		if r.err != nil {
			return nil, r.err
		}
		if p.enter(r) {
			return r, nil
		}
		select {
		case <-r.over:
		case <-p.accepting.Done():
			return nil, p.stoppedError()
		case <-ctx.Done():
			return nil, p.gaveUp(ctx)
		}
	}
}

func (p *Plugin) currentOrNew() (*run, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stopped {
		return nil, p.stoppedError()
	}
	if p.current == nil {
		if err := p.keepsFailing(); err != nil {
			return nil, err
		}
		r, notBefore := newRun(p.spec), p.record.notBefore
		p.current = r
		p.runs.Go(func() { p.own(r, notBefore) })
	}
	return p.current, nil
}

// enter counts a call to a run unless the run is over.
func (p *Plugin) enter(r *run) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stopped || r.ended() {
		return false
	}
	p.inFlight++
	return true
}

func (p *Plugin) release() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.inFlight--
	if p.stopped && p.inFlight == 0 {
		close(p.drained)
	}
}

// own sees one run from its start to its end.
func (p *Plugin) own(r *run, notBefore time.Time) {
	if err := p.start(r, notBefore); err != nil {
		r.err = err
		p.retire()
		close(r.started)
		return
	}
	ready := time.Now()
	p.log.Debug("plugin ready", "pid", r.pid(), "version", r.description.Version)
	close(r.started)

	p.watch(r)
	if r.ended() {
		p.crashed(r, time.Since(ready))
	}
	p.retire()
	close(r.over)
	r.close(p.limits.stopGrace)
}

// retire makes room for the next run.
func (p *Plugin) retire() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.current = nil
}

// errLate ends a start that takes too long. It is no deadline of the context, because the plugin would learn of that and
// give up a moment before the host does.
var errLate = errors.New("the start took too long")

// start waits until a start is due and carries it out. A run that failed to start needs no closing.
func (p *Plugin) start(r *run, notBefore time.Time) error {
	due := time.NewTimer(time.Until(notBefore))
	defer due.Stop()
	select {
	case <-due.C:
	case <-p.accepting.Done():
		return p.stoppedError()
	}
	ctx, giveUp := context.WithCancelCause(p.accepting)
	defer giveUp(nil)
	limit := time.AfterFunc(p.spec.StartTimeout, func() { giveUp(errLate) })
	defer limit.Stop()
	err := r.start(ctx)
	if err == nil {
		return nil
	}
	problem := r.startProblem(ctx, err)
	r.close(p.limits.stopGrace)
	var refused refusedError
	switch {
	case p.accepting.Err() != nil:
		return p.stoppedError()
	case errors.As(err, &refused):
		return refused.error
	}
	failure := &provider.Error{
		Code: provider.CodeUnreachable, Reason: provider.ReasonPluginFailed, Cause: err,
		Message: fmt.Sprintf("plugin %q did not start: %s", p.spec.Name, problem),
		LogTail: r.lastLines(),
	}
	if strings.Contains(problem, otherProtocol) {
		failure.LogTail = nil // the plugin says the same there
	}
	p.log.Info("plugin did not start", "path", p.spec.Path, "problem", problem)
	if r.pid() != 0 {
		p.failed(failure)
	}
	return failure
}

// watch returns when the run's process has ended or must end.
func (p *Plugin) watch(r *run) {
	if r.process == nil { // somebody else's: it may well stand still in a debugger
		<-p.living.Done()
		return
	}
	tick := time.NewTicker(p.limits.healthPeriod)
	defer tick.Stop()
	for misses := 0; ; {
		select {
		case <-p.living.Done():
			return
		case <-r.process.done:
			return
		case <-tick.C:
		}
		// Whatever it answered since the last look is a sign of life: a busy plugin may be late for the check itself.
		if r.answered.Swap(false) || r.answers(p.living, p.limits.healthTimeout) {
			misses = 0
			continue
		}
		if misses++; misses == p.limits.healthMisses {
			r.process.kill(fmt.Sprintf("it did not answer %d health checks in a row", misses))
		}
	}
}

func (p *Plugin) crashed(r *run, lasted time.Duration) {
	p.log.Warn("plugin crashed", "ending", r.process.ending(), "after", lasted.Round(time.Millisecond))
	if lasted >= p.limits.stable {
		p.mu.Lock()
		p.record = record{}
		p.mu.Unlock()
	}
	p.failed(p.crashError(r))
}

// failed takes a failure to the record: the first one costs nothing, the next ones growing pauses.
func (p *Plugin) failed(err *provider.Error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	p.record.failures = append(p.record.failures, now)
	p.record.last = err
	if p.record.pauses == nil {
		p.record.pauses = retry.WithJitterPercent(backoffJitter,
			retry.WithCappedDuration(p.limits.backoffCap, retry.NewExponential(p.limits.backoffBase)))
		return
	}
	pause, _ := p.record.pauses.Next()
	p.record.notBefore = now.Add(pause)
}

// keepsFailing is the error that keeps a plugin from being started once more, nil if nothing does.
func (p *Plugin) keepsFailing() error {
	recent := p.record.failures[:0]
	for _, at := range p.record.failures {
		if time.Since(at) < p.limits.failureWindow {
			recent = append(recent, at)
		}
	}
	p.record.failures = recent
	if len(recent) < p.limits.failures {
		return nil
	}
	return &provider.Error{
		Code: provider.CodeUnreachable, Reason: provider.ReasonPluginFailed,
		Message: fmt.Sprintf("plugin %q failed %d times within %s and is not started again for now; the last time: %s",
			p.spec.Name, len(recent), p.limits.failureWindow, p.record.last.Message),
		LogTail: p.record.last.LogTail,
	}
}

func (p *Plugin) stoppedError() error {
	return &provider.Error{
		Code: provider.CodeUnreachable, Reason: provider.ReasonPluginFailed,
		Message: fmt.Sprintf("plugin %q has been stopped", p.spec.Name),
	}
}

func (p *Plugin) gaveUp(ctx context.Context) error {
	err := provider.AsError(ctx.Err())
	err.Message = fmt.Sprintf("plugin %q was not ready in time: %s", p.spec.Name, err.Message)
	return err
}

// crashError is for the calls that were under way when the run's process ended.
func (p *Plugin) crashError(r *run) *provider.Error {
	err := &provider.Error{
		Code: provider.CodeUnreachable, Reason: provider.ReasonPluginCrashed, Retryable: true,
		LogTail: r.lastLines(),
	}
	if r.ended() {
		err.Message = fmt.Sprintf("plugin %q crashed: %s", p.spec.Name, r.process.ending())
	} else {
		err.Retryable = false
		err.Message = fmt.Sprintf("plugin %q was stopped before the call ended", p.spec.Name)
	}
	return err
}
