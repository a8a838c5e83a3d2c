// Package supervise runs plugin processes. A Plugin implements the provider interfaces: it starts the process on the
// first call, watches it, restarts it after a crash, and ends it even if it does not cooperate.
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

// Spec describes which plugin to run and how.
type Spec struct {
	// Name is the label of the provider block, for logs and errors.
	Name string
	// Path is the executable. It is made absolute and never looked up in PATH.
	Path string
	// SHA256 is the executable's checksum in hex. If empty, any executable is accepted.
	SHA256 string
	// Remedy tells users how to accept a binary with another checksum: "run ...". If empty, they are told to change
	// their configuration.
	Remedy string
	// Refusal is the reason not to run the executable at all, whatever its checksum. It is normally empty.
	Refusal string
	// Env is added to the few variables that plugins inherit, and overrides them. Secrets do not belong here: they are
	// passed by Configure.
	Env map[string]string
	// MTLS makes host and plugin authenticate each other. Without it, a plugin must listen on a unix socket.
	MTLS bool
	// StartTimeout limits launch, Describe and Configure together. The default is 10 s.
	StartTimeout time.Duration
	// DrainTimeout limits how long Stop waits for calls in progress. The default is 10 s.
	DrainTimeout time.Duration
	// Configure returns the JSON for the plugin's Configure, given the plugin's description. It is called at every
	// start. If nil, Describe is the only call allowed.
	Configure func(provider.Description) ([]byte, error)
	// Reattach is the socket of a plugin that already runs under a debugger. That plugin is neither started, watched
	// nor stopped. It is normally empty.
	Reattach string
	// Log may be nil.
	Log hclog.Logger
}

// limits are the durations and counts that tests override.
type limits struct {
	healthPeriod  time.Duration // between two health checks
	healthTimeout time.Duration // of one health check
	healthMisses  int           // in a row before the plugin is killed
	backoffBase   time.Duration // before the second restart; doubles
	backoffCap    time.Duration
	stable        time.Duration // a process that lasts this long clears the failures
	failures      int           // within failureWindow, before restarts stop
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

// Plugin is a provider backed by a plugin process. There is at most one process at a time. The first call starts it, as
// does the first call after it ended: at once after the first failure, then after growing pauses. After too many
// failures in a short time it is not started until enough time has passed.
//
// All errors are *provider.Error, except that those of Spec.Configure are returned unchanged. Errors of the process
// itself have CodeUnreachable with ReasonPluginCrashed (the call may have had its effect) or ReasonPluginFailed (the
// call was never made). A Plugin is safe for concurrent use.
type Plugin struct {
	spec   Spec
	limits limits
	log    hclog.Logger

	accepting   context.Context // done when Stop begins: no calls are accepted and starts are cut short
	refuse      context.CancelFunc
	living      context.Context // done when Stop has drained the calls: the process must end
	abandon     context.CancelFunc
	supervisors sync.WaitGroup // one goroutine per connection

	mu       sync.Mutex
	current  *connection // starting or ready
	stopped  bool
	inFlight int
	drained  chan struct{} // closed when stopped and inFlight is 0
	history  history
}

// history is what is remembered of the plugin's failures.
type history struct {
	failures  []time.Time
	last      *provider.Error
	backoff   retry.Backoff // nil before the first failure
	notBefore time.Time     // the earliest next start
}

// New returns a Plugin whose process is not started yet.
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

// Stop refuses new calls, waits for those in progress until DrainTimeout or ctx ends, and then ends the process within
// a few seconds, even if it does not cooperate. It returns an error if calls were cut off. It is idempotent.
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
	p.supervisors.Wait()
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

// Pid returns the id of the plugin's process, or 0 if there is none.
func (p *Plugin) Pid() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.current == nil {
		return 0
	}
	return p.current.pid()
}

// beginCall returns a connection that is ready for a call, starting one if necessary, and counts the call as in
// progress. The caller must end it with endCall. A start is shared by all its callers and continues when they give up.
func (p *Plugin) beginCall(ctx context.Context) (*connection, error) {
	for {
		c, err := p.currentOrNew() //nolint:contextcheck // a start belongs to all who wait for it
		if err != nil {
			return nil, err
		}
		select {
		case <-c.started:
		case <-p.accepting.Done():
			return nil, p.stoppedError()
		case <-ctx.Done():
			return nil, p.notReadyError(ctx)
		}
		if c.err != nil {
			return nil, c.err
		}
		if p.countCall(c) {
			return c, nil
		}
		select {
		case <-c.over:
		case <-p.accepting.Done():
			return nil, p.stoppedError()
		case <-ctx.Done():
			return nil, p.notReadyError(ctx)
		}
	}
}

func (p *Plugin) currentOrNew() (*connection, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stopped {
		return nil, p.stoppedError()
	}
	if p.current == nil {
		if err := p.tooManyFailures(); err != nil {
			return nil, err
		}
		c, notBefore := newConnection(p.spec), p.history.notBefore
		p.current = c
		p.supervisors.Go(func() { p.supervise(c, notBefore) })
	}
	return p.current, nil
}

// countCall counts a call as in progress unless the connection has ended. It reports whether it did.
func (p *Plugin) countCall(c *connection) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stopped || c.ended() {
		return false
	}
	p.inFlight++
	return true
}

func (p *Plugin) endCall() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.inFlight--
	if p.stopped && p.inFlight == 0 {
		close(p.drained)
	}
}

// supervise starts a connection, watches it, and closes it at its end.
func (p *Plugin) supervise(c *connection, notBefore time.Time) {
	if err := p.start(c, notBefore); err != nil {
		c.err = err
		p.clearCurrent()
		close(c.started)
		return
	}
	ready := time.Now()
	p.log.Debug("plugin ready", "pid", c.pid(), "version", c.description.Version)
	close(c.started)

	p.watch(c)
	if c.ended() {
		p.handleCrash(c, time.Since(ready))
	}
	p.clearCurrent()
	close(c.over)
	c.close(p.limits.stopGrace)
}

// clearCurrent lets the next call start a new connection.
func (p *Plugin) clearCurrent() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.current = nil
}

// errLate ends a start that takes too long. The context has no deadline, because the plugin would see it and give up a
// moment before the host does.
var errLate = errors.New("the start took too long")

// start waits until notBefore and starts the connection. It closes a connection that failed to start.
func (p *Plugin) start(c *connection, notBefore time.Time) error {
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
	err := c.start(ctx)
	if err == nil {
		return nil
	}
	problem := c.startProblem(ctx, err)
	c.close(p.limits.stopGrace)
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
		LogTail: c.lastLines(),
	}
	if strings.Contains(problem, otherProtocol) {
		failure.LogTail = nil // it would only repeat the problem
	}
	p.log.Info("plugin did not start", "path", p.spec.Path, "problem", problem)
	if c.pid() != 0 {
		p.addFailure(failure)
	}
	return failure
}

// watch returns when the process has ended or must end.
func (p *Plugin) watch(c *connection) {
	if c.process == nil { // it belongs to somebody else, and may stand still in a debugger
		<-p.living.Done()
		return
	}
	tick := time.NewTicker(p.limits.healthPeriod)
	defer tick.Stop()
	for misses := 0; ; {
		select {
		case <-p.living.Done():
			return
		case <-c.process.done:
			return
		case <-tick.C:
		}
		// Any answer since the last check is a sign of life: a busy plugin may be late for the check itself.
		if c.answered.Swap(false) || c.alive(p.living, p.limits.healthTimeout) {
			misses = 0
			continue
		}
		if misses++; misses == p.limits.healthMisses {
			c.process.kill(fmt.Sprintf("it did not answer %d health checks in a row", misses))
		}
	}
}

func (p *Plugin) handleCrash(c *connection, lasted time.Duration) {
	p.log.Warn("plugin crashed", "ending", c.process.ending(), "after", lasted.Round(time.Millisecond))
	if lasted >= p.limits.stable {
		p.mu.Lock()
		p.history = history{}
		p.mu.Unlock()
	}
	p.addFailure(p.crashError(c))
}

// addFailure records a failure. The first one delays nothing, later ones delay the next start more and more.
func (p *Plugin) addFailure(err *provider.Error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	p.history.failures = append(p.history.failures, now)
	p.history.last = err
	if p.history.backoff == nil {
		p.history.backoff = retry.WithJitterPercent(backoffJitter,
			retry.WithCappedDuration(p.limits.backoffCap, retry.NewExponential(p.limits.backoffBase)))
		return
	}
	pause, _ := p.history.backoff.Next()
	p.history.notBefore = now.Add(pause)
}

// tooManyFailures returns an error if the plugin failed too often lately to be started again, else nil.
func (p *Plugin) tooManyFailures() error {
	recent := p.history.failures[:0]
	for _, at := range p.history.failures {
		if time.Since(at) < p.limits.failureWindow {
			recent = append(recent, at)
		}
	}
	p.history.failures = recent
	if len(recent) < p.limits.failures {
		return nil
	}
	return &provider.Error{
		Code: provider.CodeUnreachable, Reason: provider.ReasonPluginFailed,
		Message: fmt.Sprintf("plugin %q failed %d times within %s and is not started again for now; the last time: %s",
			p.spec.Name, len(recent), p.limits.failureWindow, p.history.last.Message),
		LogTail: p.history.last.LogTail,
	}
}

func (p *Plugin) stoppedError() error {
	return &provider.Error{
		Code: provider.CodeUnreachable, Reason: provider.ReasonPluginFailed,
		Message: fmt.Sprintf("plugin %q has been stopped", p.spec.Name),
	}
}

func (p *Plugin) notReadyError(ctx context.Context) error {
	err := provider.AsError(ctx.Err())
	err.Message = fmt.Sprintf("plugin %q was not ready in time: %s", p.spec.Name, err.Message)
	return err
}

// crashError returns the error for calls that were in progress when the process ended.
func (p *Plugin) crashError(c *connection) *provider.Error {
	err := &provider.Error{
		Code: provider.CodeUnreachable, Reason: provider.ReasonPluginCrashed, Retryable: true,
		LogTail: c.lastLines(),
	}
	if c.ended() {
		err.Message = fmt.Sprintf("plugin %q crashed: %s", p.spec.Name, c.process.ending())
	} else {
		err.Retryable = false
		err.Message = fmt.Sprintf("plugin %q was stopped before the call ended", p.spec.Name)
	}
	return err
}
