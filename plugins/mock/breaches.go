package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/berth-dev/berth/shared/provider"
)

// breach makes exactly one check of the conformance suite fail, the one it is named after. It spoils as little as
// possible, most often only the situation that its check creates.
type breach struct {
	check string
	// does describes, for people, what the plugin then does.
	does string
	// method and effect are for breaches in calls.
	method string
	effect effect
	// early is for breaches outside of calls: see breaches_process.go.
	early func(*early)
}

// instead replaces the honest call. answer can still make that call.
func instead[Request, Reply any](
	answer func(ctx context.Context, f *faulty, q Request, honest func(context.Context, Request) (Reply, error)) (Reply, error),
	honest func(c *cloud) func(context.Context, Request) (Reply, error),
) effect {
	return before(func(ctx context.Context, c *call) error {
		reply, err := answer(ctx, c.faulty, c.request.(Request), honest(c.faulty.cloud))
		*c.reply.(*Reply), c.answered = reply, true
		return err
	})
}

type (
	creates  = func(context.Context, provider.CreateRequest) (provider.Sandbox, error)
	attaches = func(context.Context, provider.AttachRequest) (provider.Sandbox, error)
	starts   = func(context.Context, provider.StartServerRequest) (provider.Endpoints, error)
	pings    = func(context.Context, provider.PingRequest) (provider.PingResult, error)
)

func onCreate(answer func(context.Context, *faulty, provider.CreateRequest, creates) (provider.Sandbox, error)) effect {
	return instead(answer, func(c *cloud) creates { return c.Create })
}

func onAttach(answer func(context.Context, *faulty, provider.AttachRequest, attaches) (provider.Sandbox, error)) effect {
	return instead(answer, func(c *cloud) attaches { return c.Attach })
}

func onStart(answer func(context.Context, *faulty, provider.StartServerRequest, starts) (provider.Endpoints, error)) effect {
	return instead(answer, func(c *cloud) starts { return c.StartServer })
}

func onPing(answer func(context.Context, *faulty, provider.PingRequest, pings) (provider.PingResult, error)) effect {
	return instead(answer, func(c *cloud) pings { return c.Ping })
}

// made and listed spoil an honest answer.
func made(spoil func(s *provider.Sandbox)) effect {
	return after(func(_ context.Context, c *call) error { spoil(c.reply.(*provider.Sandbox)); return nil })
}

func listed(spoil func(s *provider.Sandbox)) effect {
	return after(func(_ context.Context, c *call) error {
		for i := range *c.reply.(*[]provider.Sandbox) {
			spoil(&(*c.reply.(*[]provider.Sandbox))[i])
		}
		return nil
	})
}

// answers makes Ping return the status wrong in place of right.
func answers(wrong, right provider.PingStatus) effect {
	return after(func(_ context.Context, c *call) error {
		if result := c.reply.(*provider.PingResult); result.Status == right {
			result.Status, result.Reason = wrong, "mock: told to answer so"
		}
		return nil
	})
}

// probes changes the request of a Ping.
func probes(change func(req *provider.PingRequest)) effect {
	return onPing(func(ctx context.Context, _ *faulty, q provider.PingRequest, honest pings) (provider.PingResult, error) {
		change(&q)
		return honest(ctx, q)
	})
}

// otherCode replaces the code of errors with code right.
func otherCode(method string, right, wrong provider.Code) effect {
	return effect{failed: func(_ context.Context, c *call, err error) error {
		if c.method == method && provider.CodeOf(err) == right {
			return provider.Errorf(wrong, "mock: told to answer so instead of: %v", err)
		}
		return err
	}}
}

// hadSandbox reports whether a session ever had a sandbox, and whether it has one now.
func (f *faulty) hadSandbox(ctx context.Context, owner, session string) (ever, now bool) {
	_ = f.cloud.store.do(ctx, func(w *world) error { // an error is "never"
		for _, s := range w.Sandboxes {
			if s.Owner == owner && s.Session == session {
				ever = true
				now = now || s.liveAt(time.Now())
			}
		}
		return nil
	})
	return ever, now
}

// memory is what breaches remember within this process.
type memory struct {
	mutex    sync.Mutex
	sessions map[string]int
	own      map[string]bool
	broken   map[string]bool
	waiting  map[string]int
	// interrupted is set when a Ping was cut off.
	interrupted bool
}

func newMemory() *memory {
	return &memory{sessions: map[string]int{}, own: map[string]bool{}, broken: map[string]bool{}, waiting: map[string]int{}}
}

// cutOff reports whether ctx ended for this cause. ctx's error is unreliable, because at the deadline the caller's
// cancellation often arrives first. But calls that the suite cancels have a deadline far away.
func cutOff(ctx context.Context, cause error) bool {
	deadline, set := ctx.Deadline()
	late := set && time.Until(deadline) < time.Second
	return ctx.Err() != nil && late == errors.Is(cause, context.DeadlineExceeded)
}

// breaches are all breaches, in the order of the suite's checks.
var breaches = slices.Concat(earlyBreaches, callBreaches)

var callBreaches = []breach{
	{check: "configure/accepts", does: "refuses every configuration", method: "configure",
		effect: before(func(context.Context, *call) error { return provider.InvalidField("size", "mock: told to refuse it") })},

	{check: "create/answer", does: "Create answers with another owner", method: "create",
		effect: made(func(s *provider.Sandbox) { s.Owner = "somebody" })},
	{check: "create/labels", does: "List leaves the labels out", method: "list",
		effect: listed(func(s *provider.Sandbox) { s.Labels = nil })},
	{check: "create/lifetime", does: "sandboxes never end", method: "create",
		effect: made(func(s *provider.Sandbox) { s.ExpiresAt = time.Time{} })},
	{check: "create/once", does: "Create claims to have created what it adopted", method: "create",
		effect: made(func(s *provider.Sandbox) { s.Origin = provider.OriginCreated })},
	{check: "create/once-at-once", does: "concurrent Creates for one session do not see each other", method: "create",
		effect: onCreate(createTwice)},
	{check: "create/adopts", does: "only the process that made a sandbox finds it", method: "any", effect: ownOnly},
	{check: "create/owners", does: "List shows an owner the sandbox that another owner has for the same session", method: "list",
		effect: after(listNeighbours)},

	{check: "attach/missing", does: "Attach says unreachable when there never was a sandbox", method: "attach",
		effect: effect{failed: func(ctx context.Context, c *call, err error) error {
			q := c.request.(provider.AttachRequest)
			if ever, _ := c.faulty.hadSandbox(ctx, q.Owner, q.Session); !ever && q.SandboxID == "" && provider.CodeOf(err) == provider.CodeNotFound {
				return provider.Errorf(provider.CodeUnreachable, "mock: told to answer so")
			}
			return err
		}}},
	{check: "attach/creates-nothing", does: "Attach makes a sandbox where there is none, and says not found", method: "attach",
		effect: onAttach(attachAndCreate)},
	{check: "attach/running", does: "Attach claims to have woken a sandbox that runs", method: "attach",
		effect: made(func(s *provider.Sandbox) { s.Origin = provider.OriginWoken })},
	{check: "attach/wakes", does: "Attach hides that it woke a sandbox", method: "attach",
		effect: made(func(s *provider.Sandbox) { s.Origin = provider.OriginAttached })},
	{check: "attach/gone", does: "Attach to a destroyed sandbox fails with another error than not found", method: "attach",
		effect: effect{failed: func(ctx context.Context, c *call, err error) error {
			q := c.request.(provider.AttachRequest)
			if ever, now := c.faulty.hadSandbox(ctx, q.Owner, q.Session); ever && !now {
				return provider.Errorf(provider.CodeFailed, "mock: told to answer so")
			}
			return err
		}}},
	{check: "attach/foreign", does: "Attach gives out another owner's sandbox", method: "attach", effect: onAttach(attachForeign)},
	{check: "attach/denied", does: "Attach takes wrong credentials for not found", method: "attach",
		effect: otherCode("attach", provider.CodeDenied, provider.CodeNotFound)},
	{check: "attach/unreachable", does: "Attach takes an unreachable cloud for not found", method: "attach",
		effect: otherCode("attach", provider.CodeUnreachable, provider.CodeNotFound)},

	{check: "start/endpoint", does: "StartServer gives a URL at which nothing listens", method: "any", effect: deadEndpoint},
	{check: "start/private", does: "URLs open without their headers", method: "configure",
		effect: before(func(_ context.Context, c *call) error { c.faulty.cloud.public = true; return nil })},
	{check: "start/extra-ports", does: "StartServer gives the server's endpoint for every extra port", method: "start",
		effect: after(func(_ context.Context, c *call) error {
			endpoints := c.reply.(*provider.Endpoints)
			for name := range endpoints.Extra {
				endpoints.Extra[name] = endpoints.Server
			}
			return nil
		})},
	{check: "start/placeholders", does: "PORT is not set", method: "start",
		effect: onStart(func(ctx context.Context, _ *faulty, q provider.StartServerRequest, honest starts) (provider.Endpoints, error) {
			q.Server.Command = slices.Clone(q.Server.Command)
			for i, word := range q.Server.Command {
				q.Server.Command[i] = strings.ReplaceAll(word, "$PORT", "")
			}
			return honest(ctx, q)
		})},
	{check: "start/once", does: "StartServer replaces a server that runs", method: "start", effect: before(dropServer)},
	{check: "start/dies-at-once", does: "a server that died at once is forgotten", method: "start", effect: after(forgetDead)},
	{check: "start/last-words", does: "Ping does not report why a server ended", method: "ping",
		effect: after(func(_ context.Context, c *call) error {
			result := c.reply.(*provider.PingResult)
			result.ExitCode, result.LogTail = nil, nil
			return nil
		})},
	{check: "start/no-such-command", does: "StartServer takes any command", method: "start",
		effect: effect{failed: func(ctx context.Context, c *call, err error) error {
			if !strings.HasPrefix(c.request.(provider.StartServerRequest).Server.Command[0], "/nonexistent/") {
				return err
			}
			return c.returnEndpoints(ctx)
		}}},
	{check: "start/gone", does: "StartServer in a destroyed sandbox says unreachable", method: "start",
		effect: otherCode("start", provider.CodeNotFound, provider.CodeUnreachable)},
	{check: "start/suspended", does: "StartServer in a suspended sandbox says not found", method: "start",
		effect: otherCode("start", provider.CodeState, provider.CodeNotFound)},

	{check: "ping/alive", does: "Ping never finds the server alive", method: "ping",
		effect: after(func(_ context.Context, c *call) error {
			own := strings.Contains(c.request.(provider.PingRequest).Endpoint.URL, c.request.(provider.PingRequest).SandboxID)
			if result := c.reply.(*provider.PingResult); own && result.Status == provider.PingAlive {
				result.Status = provider.PingNotYet
			}
			return nil
		})},
	{check: "ping/json-fields", does: "Ping does not read the answer", method: "ping",
		effect: probes(func(q *provider.PingRequest) { q.Health.JSONFields = nil })},
	{check: "ping/paths", does: "Ping asks the first path only", method: "ping",
		effect: probes(func(q *provider.PingRequest) { q.Health.Paths = q.Health.Paths[:1] })},
	{check: "ping/headers", does: "Ping forgets headers that are not the cloud's own", method: "ping",
		effect: probes(func(q *provider.PingRequest) {
			q.Endpoint.Headers = map[string]string{tokenHeader: q.Endpoint.Headers[tokenHeader]}
		})},
	{check: "ping/once", does: "Ping asks twice", method: "ping",
		effect: onPing(func(ctx context.Context, _ *faulty, q provider.PingRequest, honest pings) (provider.PingResult, error) {
			_, _ = honest(ctx, q)
			return honest(ctx, q)
		})},
	{check: "ping/redirect", does: "Ping follows redirects", method: "configure",
		effect: before(func(_ context.Context, c *call) error {
			c.faulty.cloud.client = &http.Client{Transport: c.faulty.cloud.client.Transport}
			return nil
		})},
	{check: "ping/denied", does: "Ping goes on waiting when it is refused", method: "ping",
		effect: after(func(_ context.Context, c *call) error {
			result := c.reply.(*provider.PingResult)
			if result.Status == provider.PingDenied && !strings.Contains(result.Reason, "redirected") {
				result.Status = provider.PingNotYet
			}
			return nil
		})},
	{check: "ping/not-yet", does: "Ping takes a status of 500 for a refusal", method: "ping",
		effect: after(func(_ context.Context, c *call) error {
			if result := c.reply.(*provider.PingResult); strings.Contains(result.Reason, ": 500 ") {
				result.Status = provider.PingDenied
			}
			return nil
		})},
	{check: "ping/slow", does: "Ping ignores the timeout of the health check", method: "ping",
		effect: probes(func(q *provider.PingRequest) { q.Health.Timeout = time.Hour })},
	{check: "ping/exited", does: "Ping notices only that a server ended at once", method: "ping", effect: after(hideLaterEnd)},
	{check: "ping/stopped", does: "Ping does not notice that the sandbox is suspended", method: "ping",
		effect: answers(provider.PingNotYet, provider.PingStopped)},
	{check: "ping/wakes-nothing", does: "Ping wakes a suspended sandbox", method: "ping", effect: after(wakeAfterPing)},
	{check: "ping/gone", does: "Ping does not notice that the sandbox is gone", method: "ping",
		effect: answers(provider.PingNotYet, provider.PingGone)},

	{check: "housekeeping/destroy-twice", does: "Destroy fails when there is nothing to destroy", method: "destroy",
		effect: before(func(ctx context.Context, c *call) error {
			return c.faulty.cloud.store.do(ctx, func(w *world) error {
				_, err := w.find(time.Now(), c.request.(provider.SandboxRef))
				return err
			})
		})},
	{check: "housekeeping/destroy-foreign", does: "Destroy does not look whose sandbox it is", method: "destroy",
		effect: before(func(ctx context.Context, c *call) error {
			c.answered = true
			return c.faulty.cloud.store.do(ctx, func(w *world) error {
				if s := w.Sandboxes[c.request.(provider.SandboxRef).SandboxID]; s != nil && s.DestroyedAt.IsZero() {
					s.DestroyedAt = time.Now()
				}
				return nil
			})
		})},
	{check: "housekeeping/list-after-destroy", does: "List of a session shows sandboxes that were destroyed", method: "list",
		effect: after(listTombstones)},
	{check: "housekeeping/list-complete", does: "List gives the first page only", method: "list",
		effect: after(func(_ context.Context, c *call) error {
			const page = 4
			all := c.reply.(*[]provider.Sandbox)
			*all = (*all)[:min(page, len(*all))]
			return nil
		})},
	{check: "housekeeping/renew", does: "Renew counts from nothing", method: "renew",
		effect: after(func(_ context.Context, c *call) error { *c.reply.(*time.Time) = time.Now(); return nil })},
	{check: "housekeeping/suspend", does: "List shows suspended sandboxes as running", method: "list",
		effect: listed(func(s *provider.Sandbox) { s.State = provider.StateRunning })},
	{check: "housekeeping/suspend-twice", does: "Suspend fails when the sandbox is suspended", method: "suspend",
		effect: before(func(ctx context.Context, c *call) error {
			return c.faulty.cloud.store.do(ctx, func(w *world) error {
				s, err := w.find(time.Now(), c.request.(provider.SandboxRef))
				if err == nil && s.Suspended {
					err = provider.Errorf(provider.CodeState, "it is suspended already")
				}
				return err
			})
		})},
	{check: "housekeeping/logs", does: "Logs gives the newest line first", method: "logs",
		effect: after(func(_ context.Context, c *call) error { slices.Reverse(*c.reply.(*[]string)); return nil })},

	{check: "cancel/create", does: "a Create that is cancelled goes on", method: "create",
		effect: onCreate(createAfter(context.Canceled))},
	{check: "cancel/create-deadline", does: "a Create whose deadline passes goes on", method: "create",
		effect: onCreate(createAfter(context.DeadlineExceeded))},
	{check: "cancel/attach", does: "an Attach that is cancelled destroys the sandbox", method: "attach",
		effect: effect{failed: func(ctx context.Context, c *call, err error) error {
			q := c.request.(provider.AttachRequest)
			if ctx.Err() != nil && q.SandboxID != "" {
				_ = c.faulty.cloud.Destroy(context.WithoutCancel(ctx), provider.SandboxRef{Owner: q.Owner, SandboxID: q.SandboxID})
			}
			return err
		}}},
	{check: "cancel/start", does: "a StartServer that is cancelled keeps its lock", method: "start", effect: onStart(startOrBreak)},
	{check: "cancel/ping", does: "a Ping that is cancelled goes on", method: "ping", effect: deafTo(context.Canceled)},
	{check: "cancel/ping-deadline", does: "a Ping whose deadline passes goes on", method: "ping", effect: deafTo(context.DeadlineExceeded)},

	{check: "robust/many-calls", does: "Attach fails when it is called often", method: "attach", effect: before(tooManyAttaches)},
	{check: "robust/side-by-side", does: "only 16 Pings of one URL run at a time", method: "ping", effect: onPing(pingInTurn)},

	{check: "end/nothing-left", does: "Destroy does nothing for sessions that two owners have", method: "destroy", effect: before(destroyNothing)},
	{check: "end/silent", does: "Ping prints to standard output", method: "ping",
		effect: before(func(_ context.Context, c *call) error { fmt.Fprintln(c.faulty.stdout, "mock: pinging"); return nil })},
	{check: "secrets/processes", does: "StartServer hands api_key to a process in its command line", method: "start",
		effect: before(func(ctx context.Context, c *call) error {
			child := exec.CommandContext(context.WithoutCancel(ctx), "sh", "-c", "sleep 60", "api_key="+c.faulty.cloud.config.APIKey)
			if err := child.Start(); err != nil {
				return err
			}
			c.faulty.children.Go(func() { _ = child.Wait() }) // its exit code means nothing
			return nil
		})},
	{check: "secrets/errors", does: "errors of Attach quote api_key", method: "attach",
		effect: effect{failed: func(_ context.Context, c *call, err error) error {
			e := *provider.AsError(err)
			e.Message += ", with the key " + c.faulty.cloud.config.APIKey
			return &e
		}}},
	{check: "secrets/stderr", does: "StartServer writes api_key to standard error", method: "start", effect: before(leakSecret)},
}

// returnEndpoints makes StartServer succeed without a server.
func (c *call) returnEndpoints(ctx context.Context) error {
	q := c.request.(provider.StartServerRequest)
	return c.faulty.cloud.store.do(ctx, func(w *world) error {
		s, err := w.find(time.Now(), provider.SandboxRef{Owner: q.Owner, SandboxID: q.SandboxID})
		if err == nil {
			s.Server = nil
			*c.reply.(*provider.Endpoints) = c.faulty.cloud.endpoints(s, q.Server)
		}
		return err
	})
}

// forgetDead removes the record of a server that has died already.
func forgetDead(ctx context.Context, c *call) error {
	return c.faulty.cloud.store.do(ctx, func(w *world) error {
		now := time.Now()
		s, err := w.find(now, started(c))
		if err == nil && s.Server.diedBy(now) {
			s.Server = nil
		}
		return err
	})
}

// hideLaterEnd hides the end of a server, unless it ended at once.
func hideLaterEnd(ctx context.Context, c *call) error {
	result := c.reply.(*provider.PingResult)
	if result.Status != provider.PingExited {
		return nil
	}
	q := c.request.(provider.PingRequest)
	return c.faulty.cloud.store.do(ctx, func(w *world) error {
		s, err := w.find(time.Now(), provider.SandboxRef{Owner: q.Owner, SandboxID: q.SandboxID})
		if err == nil && s.Server != nil && s.Server.DiesAt.After(s.Server.StartedAt) {
			*result = provider.PingResult{Status: provider.PingNotYet, Reason: "mock: told to hide that the server ended"}
		}
		return err
	})
}

func createTwice(ctx context.Context, f *faulty, q provider.CreateRequest, honest creates) (provider.Sandbox, error) {
	m, key := f.memory, q.Owner+"\x00"+q.Session
	m.mutex.Lock()
	m.sessions[key]++
	before := m.sessions[key]
	m.mutex.Unlock()
	defer func() {
		m.mutex.Lock()
		defer m.mutex.Unlock()
		m.sessions[key]--
	}()
	session := q.Session
	if before > 1 {
		q.Session = fmt.Sprintf("%s-%d", session, before)
	}
	s, err := honest(ctx, q)
	s.Session = session
	return s, err
}

// ownOnly lets a process attach only to sandboxes of its own.
var ownOnly = effect{after: func(_ context.Context, c *call) error {
	s, ok := c.reply.(*provider.Sandbox)
	if !ok {
		return nil
	}
	m := c.faulty.memory
	m.mutex.Lock()
	defer m.mutex.Unlock()
	if c.method == "create" {
		m.own[s.ID] = true
	} else if !m.own[s.ID] {
		return provider.Errorf(provider.CodeNotFound, "mock: this process did not make it")
	}
	return nil
}}

func listNeighbours(ctx context.Context, c *call) error {
	q, all := c.request.(provider.ListRequest), c.reply.(*[]provider.Sandbox)
	return c.faulty.cloud.store.do(ctx, func(w *world) error {
		for _, own := range slices.Clone(*all) {
			for _, s := range w.Sandboxes {
				if s.Session == own.Session && s.Owner != q.Owner && s.liveAt(time.Now()) {
					neighbour := c.faulty.cloud.describe(s)
					neighbour.Owner = q.Owner
					*all = append(*all, neighbour)
				}
			}
		}
		return nil
	})
}

func attachAndCreate(ctx context.Context, f *faulty, q provider.AttachRequest, honest attaches) (provider.Sandbox, error) {
	ever, _ := f.hadSandbox(ctx, q.Owner, q.Session)
	found, err := honest(ctx, q)
	if !ever && provider.CodeOf(err) == provider.CodeNotFound {
		_, _ = f.cloud.Create(ctx, provider.CreateRequest{Session: q.Session, Owner: q.Owner, Lifetime: q.Lifetime})
	}
	return found, err
}

func attachForeign(ctx context.Context, f *faulty, q provider.AttachRequest, honest attaches) (provider.Sandbox, error) {
	found, err := honest(ctx, q)
	if provider.CodeOf(err) != provider.CodeConflict {
		return found, err
	}
	err = f.cloud.store.do(ctx, func(w *world) error {
		found = f.cloud.describe(w.Sandboxes[q.SandboxID])
		found.Session, found.Origin = q.Session, provider.OriginAttached
		return nil
	})
	return found, err
}

// deadURL is the endpoint in a spoiled answer. Ping works as if the endpoint were right.
const deadURL = "http://127.0.0.1:1"

var deadEndpoint = effect{
	before: func(ctx context.Context, c *call) error {
		q, ok := c.request.(provider.PingRequest)
		if !ok || q.Endpoint.URL != deadURL {
			return nil
		}
		err := c.faulty.cloud.store.do(ctx, func(w *world) error {
			s, err := w.find(time.Now(), provider.SandboxRef{Owner: q.Owner, SandboxID: q.SandboxID})
			if err == nil {
				err = answerPing(c, health(s, time.Now()))
			}
			return err
		})
		if provider.CodeOf(err) == provider.CodeNotFound {
			return nil // the honest Ping reports that as well
		}
		return err
	},
	after: func(_ context.Context, c *call) error {
		if endpoints, ok := c.reply.(*provider.Endpoints); ok {
			endpoints.Server.URL = deadURL
		}
		return nil
	},
}

func dropServer(ctx context.Context, c *call) error {
	return c.faulty.cloud.store.do(ctx, func(w *world) error {
		if s, err := w.find(time.Now(), started(c)); err == nil {
			s.Server = nil
		}
		return nil
	})
}

func wakeAfterPing(ctx context.Context, c *call) error {
	if c.reply.(*provider.PingResult).Status != provider.PingStopped {
		return nil
	}
	return c.faulty.cloud.store.do(ctx, func(w *world) error {
		w.Sandboxes[c.request.(provider.PingRequest).SandboxID].Suspended = false
		return nil
	})
}

func listTombstones(ctx context.Context, c *call) error {
	q, all := c.request.(provider.ListRequest), c.reply.(*[]provider.Sandbox)
	if q.Session == "" {
		return nil
	}
	return c.faulty.cloud.store.do(ctx, func(w *world) error {
		for _, s := range w.Sandboxes {
			if s.Owner == q.Owner && s.Session == q.Session && !s.DestroyedAt.IsZero() {
				*all = append(*all, c.faulty.cloud.describe(s))
			}
		}
		return nil
	})
}

// createAfter completes a Create that was cut off for the cause.
func createAfter(cause error) func(context.Context, *faulty, provider.CreateRequest, creates) (provider.Sandbox, error) {
	return func(ctx context.Context, _ *faulty, q provider.CreateRequest, honest creates) (provider.Sandbox, error) {
		s, err := honest(ctx, q)
		if err != nil && cutOff(ctx, cause) {
			_, _ = honest(context.WithoutCancel(ctx), q)
		}
		return s, err
	}
}

func startOrBreak(ctx context.Context, f *faulty, q provider.StartServerRequest, honest starts) (provider.Endpoints, error) {
	m := f.memory
	m.mutex.Lock()
	broken := m.broken[q.SandboxID]
	m.mutex.Unlock()
	if broken {
		return provider.Endpoints{}, provider.Errorf(provider.CodeState, "mock: another StartServer is under way")
	}
	endpoints, err := honest(ctx, q)
	m.mutex.Lock()
	defer m.mutex.Unlock()
	m.broken[q.SandboxID] = ctx.Err() != nil
	return endpoints, err
}

// deafTo makes a call ignore that it was cut off for the cause. Other causes still end it.
func deafTo(cause error) effect {
	return effect{context: func(ctx context.Context) (context.Context, context.CancelFunc) {
		deaf, cancel := context.WithCancel(context.WithoutCancel(ctx))
		stop := context.AfterFunc(ctx, func() {
			if !cutOff(ctx, cause) {
				cancel()
			}
		})
		return deaf, func() { stop(); cancel() }
	}}
}

func tooManyAttaches(_ context.Context, c *call) error {
	const most = 5
	m, q := c.faulty.memory, c.request.(provider.AttachRequest)
	m.mutex.Lock()
	defer m.mutex.Unlock()
	m.sessions[q.Owner+"\x00"+q.Session]++
	if m.sessions[q.Owner+"\x00"+q.Session] > most {
		return provider.Errorf(provider.CodeUnreachable, "mock: that is one too many")
	}
	return nil
}

func pingInTurn(ctx context.Context, f *faulty, q provider.PingRequest, honest pings) (provider.PingResult, error) {
	const most = 16
	m, key := f.memory, q.Endpoint.URL
	for {
		m.mutex.Lock()
		if m.waiting[key] < most {
			break
		}
		m.mutex.Unlock()
		if err := sleep(ctx, 5*time.Millisecond); err != nil {
			return provider.PingResult{}, err
		}
	}
	m.waiting[key]++
	m.mutex.Unlock()
	defer func() {
		m.mutex.Lock()
		defer m.mutex.Unlock()
		m.waiting[key]--
	}()
	return honest(ctx, q)
}

func destroyNothing(ctx context.Context, c *call) error {
	return c.faulty.cloud.store.do(ctx, func(w *world) error {
		destroyed := w.Sandboxes[c.request.(provider.SandboxRef).SandboxID]
		for _, s := range w.Sandboxes {
			if destroyed != nil && s.Session == destroyed.Session && s.Owner != destroyed.Owner && c.request.(provider.SandboxRef).Owner == destroyed.Owner {
				c.answered = true
			}
		}
		return nil
	})
}

// parseBreach finds a breach by the name of its check.
func parseBreach(check string) (breach, error) {
	var known []string
	for _, b := range breaches {
		if b.check == check {
			return b, nil
		}
		known = append(known, b.check)
	}
	return breach{}, fmt.Errorf("there is no breach %q; there are %s", check, strings.Join(known, ", "))
}
