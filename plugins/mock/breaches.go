package main

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"os"
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
	// form tells several breaches of one check apart. It may be empty.
	form string
	// does describes, for people, what the plugin then does.
	does string
	// method and effect are for breaches in calls.
	method string
	effect effect
	// early is for breaches outside of calls: see breaches_process.go.
	early func(*early)
}

// name is how configurations name the breach: GROUP/NAME, or GROUP/NAME:FORM.
func (b breach) name() string { return strings.TrimSuffix(b.check+":"+b.form, ":") }

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
		if c.method == method && provider.CodeOf(err) == right && !strings.Contains(err.Error(), "the cloud answers") {
			return provider.Errorf(wrong, "mock: told to answer so instead of: %v", err)
		}
		return err
	}}
}

// cloudSays changes what a call makes of a status with which the cloud answers. An error of nil is success.
func cloudSays(status int, change func(c *call, err error) error) effect {
	return effect{failed: func(_ context.Context, c *call, err error) error {
		if err.Error() == doorSays(status) {
			return change(c, err)
		}
		return err
	}}
}

func code(wrong provider.Code) func(*call, error) error {
	return func(_ *call, err error) error {
		return provider.Errorf(wrong, "mock: told to answer so instead of: %v", err)
	}
}

func success(*call, error) error { return nil }

// trusting makes calls not look whose sandbox it is that they name: they take the caller for its owner, or the session of the
// call for its session.
func trusting[Request any](
	owner, session func(*Request) *string, id func(Request) string, honest func(context.Context, *cloud, Request) (any, error),
) effect {
	return before(func(ctx context.Context, c *call) error {
		q := c.request.(Request)
		err := c.faulty.cloud.store.do(ctx, func(w *world) error {
			s := w.Sandboxes[id(q)]
			switch {
			case s == nil:
			case owner != nil && *owner(&q) != s.Owner:
				*owner(&q), c.answered = s.Owner, true
			case session != nil && *session(&q) != s.Session:
				*session(&q), c.answered = s.Session, true
			}
			return nil
		})
		if err != nil || !c.answered {
			return err
		}
		reply, err := honest(ctx, c.faulty.cloud, q)
		switch to := c.reply.(type) {
		case *provider.Endpoints:
			*to, _ = reply.(provider.Endpoints)
		case *provider.PingResult:
			*to, _ = reply.(provider.PingResult)
		case *time.Time:
			*to, _ = reply.(time.Time)
		case *[]string:
			*to, _ = reply.([]string)
		}
		return err
	})
}

func startAnyway(ctx context.Context, c *cloud, q provider.StartServerRequest) (any, error) {
	return c.StartServer(ctx, q)
}

func pingAnyway(ctx context.Context, c *cloud, q provider.PingRequest) (any, error) {
	return c.Ping(ctx, q)
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
	// pinged counts the Pings of sandboxes, and stale are those whose listing lags.
	pinged map[string]int
	stale  map[string]bool
	// interrupted is set when a Ping was cut off.
	interrupted bool
	// creating is held by a Create.
	creating sync.Mutex
}

func newMemory() *memory {
	return &memory{sessions: map[string]int{}, own: map[string]bool{}, broken: map[string]bool{}, waiting: map[string]int{},
		pinged: map[string]int{}, stale: map[string]bool{}}
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
	{check: "create/answer", form: "attempt", does: "Create answers with an attempt of its own", method: "create",
		effect: made(func(s *provider.Sandbox) { s.Attempt = "some-attempt" })},
	{check: "create/labels", form: "attempt", does: "List makes attempts up", method: "list",
		effect: listed(func(s *provider.Sandbox) { s.Attempt = "some-attempt" })},
	{check: "create/labels", does: "List leaves the labels out", method: "list",
		effect: listed(func(s *provider.Sandbox) { s.Labels = nil })},
	{check: "create/lifetime", does: "sandboxes never end", method: "create",
		effect: made(func(s *provider.Sandbox) { s.ExpiresAt = time.Time{} })},
	{check: "create/once", does: "Create claims to have created what it adopted", method: "create",
		effect: made(func(s *provider.Sandbox) { s.Origin = provider.OriginCreated })},
	{check: "create/once-at-once", does: "concurrent Creates for one session do not see each other", method: "create",
		effect: onCreate(createTwice)},
	{check: "create/once-across", does: "Create does not see what another process has just made", method: "create", effect: onCreate(createUnseen)},
	{check: "create/names", does: "long names of sessions are cut and lower-cased", method: "create", effect: onCreate(createCut)},
	{check: "create/lost-answer", does: "Create gives up when the cloud's answer gets lost", method: "configure",
		effect: before(func(_ context.Context, c *call) error { c.faulty.cloud.forgets = true; return nil })},
	{check: "create/lifetime-ends", does: "short lifetimes are reported, and not armed", method: "create", effect: onCreate(createUnarmed)},
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
	{check: "attach/running", does: "Attach without an id claims to have woken a sandbox that runs", method: "attach",
		effect: after(func(_ context.Context, c *call) error {
			if c.request.(provider.AttachRequest).SandboxID == "" {
				c.reply.(*provider.Sandbox).Origin = provider.OriginWoken
			}
			return nil
		})},
	{check: "attach/endpoints", does: "Attach does not say where the server is", method: "attach",
		effect: made(func(s *provider.Sandbox) { s.Endpoints = nil })},
	{check: "attach/endpoints", form: "other-process", does: "Attach says where the server is only if this process started it", method: "any", effect: ownEndpoints},
	{check: "attach/endpoints", form: "no-headers", does: "Attach leaves out the headers", method: "attach",
		effect: made(func(s *provider.Sandbox) { s.Endpoints.Server.Headers = nil })},
	{check: "attach/keeps-life", does: "Attach arms the lifetime anew, also nearer", method: "attach", effect: after(shorten)},
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
	{check: "attach/foreign", does: "Attach gives out another owner's sandbox", method: "attach", effect: onAttach(attachOf(false))},
	{check: "attach/other-session", does: "Attach gives out the sandbox of another session", method: "attach", effect: onAttach(attachOf(true))},
	{check: "attach/denied", does: "Attach takes wrong credentials for not found", method: "attach",
		effect: otherCode("attach", provider.CodeDenied, provider.CodeNotFound)},
	{check: "attach/unreachable", does: "Attach takes an unreachable cloud for not found", method: "attach",
		effect: otherCode("attach", provider.CodeUnreachable, provider.CodeNotFound)},

	{check: "cloud/attach", form: "500", does: "Attach takes the cloud's 500 for not found", method: "attach",
		effect: cloudSays(500, code(provider.CodeNotFound))},
	{check: "cloud/attach", form: "403", does: "Attach takes the cloud's 403 for not found", method: "attach",
		effect: cloudSays(403, code(provider.CodeNotFound))},
	{check: "cloud/attach", form: "429", does: "Attach takes the cloud's 429 for not found", method: "attach",
		effect: cloudSays(429, code(provider.CodeNotFound))},
	{check: "cloud/attach", form: "garbage", does: "Attach takes a page that is not the API's for not found", method: "attach",
		effect: cloudSays(200, code(provider.CodeNotFound))},
	{check: "cloud/attach", form: "429-denied", does: "Attach takes the cloud's 429 for a refusal", method: "attach",
		effect: cloudSays(429, code(provider.CodeDenied))},
	{check: "cloud/retry-after", does: "a rate limit's error does not say how long to wait", method: "attach",
		effect: cloudSays(429, func(_ *call, err error) error {
			e := *provider.AsError(err)
			e.RetryAfter = 0
			return &e
		})},
	{check: "cloud/list", form: "500", does: "List is empty when the cloud answers 500", method: "list", effect: cloudSays(500, success)},
	{check: "cloud/list", form: "garbage", does: "List is empty when the cloud answers with a page", method: "list", effect: cloudSays(200, success)},
	{check: "cloud/destroy", form: "403", does: "Destroy takes the cloud's 403 for gone", method: "destroy", effect: cloudSays(403, success)},
	{check: "cloud/destroy", form: "500", does: "Destroy takes the cloud's 500 for gone", method: "destroy", effect: cloudSays(500, success)},
	{check: "cloud/start", does: "StartServer takes the cloud's 500 for not found", method: "start",
		effect: cloudSays(500, code(provider.CodeNotFound))},
	{check: "cloud/ping", form: "500", does: "Ping takes the cloud's 500 for gone", method: "ping", effect: cloudSays(500, gone)},
	{check: "cloud/ping", form: "403", does: "Ping takes the cloud's 403 for gone", method: "ping", effect: cloudSays(403, gone)},

	{check: "start/endpoint", does: "StartServer gives a URL at which nothing listens", method: "any", effect: deadEndpoint},
	{check: "start/private", does: "URLs open without their headers", method: "configure",
		effect: before(func(_ context.Context, c *call) error { c.faulty.cloud.public = true; return nil })},
	{check: "start/private", form: "no-headers", does: "the server's URL is public and asks for no headers", method: "any",
		effect: headerless(func(c *cloud, endpoints *provider.Endpoints) { c.public, endpoints.Server.Headers = true, nil })},
	{check: "start/extra-private", does: "extra ports open without their headers", method: "configure",
		effect: before(func(_ context.Context, c *call) error { c.faulty.cloud.publicExtra = true; return nil })},
	{check: "start/extra-private", form: "no-headers", does: "extra ports are public and ask for no headers", method: "any",
		effect: headerless(func(c *cloud, endpoints *provider.Endpoints) {
			c.publicExtra = true
			for name, endpoint := range endpoints.Extra {
				endpoint.Headers = nil
				endpoints.Extra[name] = endpoint
			}
		})},
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
	{check: "start/environment", does: "a shell reads the variables of the server once more", method: "start",
		effect: onStart(func(ctx context.Context, _ *faulty, q provider.StartServerRequest, honest starts) (provider.Endpoints, error) {
			q.Server.Env = maps.Clone(q.Server.Env)
			for name, value := range q.Server.Env {
				q.Server.Env[name] = os.Expand(value, func(string) string { return "" })
			}
			return honest(ctx, q)
		})},
	{check: "start/environment", form: "words", does: "a shell splits the words of the command", method: "start",
		effect: onStart(func(ctx context.Context, _ *faulty, q provider.StartServerRequest, honest starts) (provider.Endpoints, error) {
			q.Server.Command = slices.Clone(q.Server.Command)
			for i, word := range q.Server.Command {
				if i > 2 {
					q.Server.Command[i] = strings.Join(strings.Fields(word), " ")
				}
			}
			return honest(ctx, q)
		})},
	{check: "start/once", does: "StartServer replaces a server that runs", method: "start", effect: before(dropSame)},
	{check: "start/changed", does: "StartServer with another command replaces the server", method: "start", effect: before(dropOther)},
	{check: "start/foreign", does: "StartServer does not look whose sandbox it is", method: "start",
		effect: trusting(func(q *provider.StartServerRequest) *string { return &q.Owner }, nil,
			func(q provider.StartServerRequest) string { return q.SandboxID }, startAnyway)},
	{check: "start/other-session", does: "StartServer does not look which session's sandbox it is", method: "start",
		effect: trusting(nil, func(q *provider.StartServerRequest) *string { return &q.Session },
			func(q provider.StartServerRequest) string { return q.SandboxID }, startAnyway)},
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
	{check: "ping/early", does: "the first Ping says gone, because the listing lags", method: "ping", effect: after(goneAtFirst)},
	{check: "ping/foreign", does: "Ping does not look whose sandbox it is", method: "ping",
		effect: trusting(func(q *provider.PingRequest) *string { return &q.Owner }, nil,
			func(q provider.PingRequest) string { return q.SandboxID }, pingAnyway)},
	{check: "ping/other-session", does: "Ping does not look which session's sandbox it is", method: "ping",
		effect: trusting(nil, func(q *provider.PingRequest) *string { return &q.Session },
			func(q provider.PingRequest) string { return q.SandboxID }, pingAnyway)},
	{check: "ping/json-fields", form: "numbers", does: "Ping compares text only", method: "ping", effect: probes(func(q *provider.PingRequest) {
		for name, value := range q.Health.JSONFields {
			if strings.Trim(value, "0123456789") == "" {
				q.Health.JSONFields = map[string]string{name: `"` + value + `"`}
			}
		}
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
			if result.Status == provider.PingDenied && (strings.Contains(result.Reason, ": 401") || strings.Contains(result.Reason, ": 403")) {
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
	{check: "ping/wakes-nothing", form: "lag", does: "Ping wakes a suspended sandbox, and the listing lags", method: "any", effect: wakeUnseen},
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
	{check: "housekeeping/renew-foreign", does: "Renew does not look whose sandbox it is", method: "renew",
		effect: trusting(func(q *provider.RenewRequest) *string { return &q.Owner }, nil,
			func(q provider.RenewRequest) string { return q.SandboxID },
			func(ctx context.Context, c *cloud, q provider.RenewRequest) (any, error) { return c.Renew(ctx, q) })},
	{check: "housekeeping/suspend-foreign", does: "Suspend does not look whose sandbox it is", method: "suspend",
		effect: trusting(func(q *provider.SandboxRef) *string { return &q.Owner }, nil,
			func(q provider.SandboxRef) string { return q.SandboxID },
			func(ctx context.Context, c *cloud, q provider.SandboxRef) (any, error) { return nil, c.Suspend(ctx, q) })},
	{check: "housekeeping/suspend-foreign", form: "refused", does: "Suspend refuses another owner's sandbox after suspending it", method: "suspend",
		effect: before(func(ctx context.Context, c *call) error {
			return c.faulty.cloud.store.do(ctx, func(w *world) error {
				if s := w.Sandboxes[c.request.(provider.SandboxRef).SandboxID]; s != nil && s.Owner != c.request.(provider.SandboxRef).Owner {
					s.Suspended, s.Server = true, nil
				}
				return nil
			})
		})},
	{check: "housekeeping/logs-foreign", does: "Logs does not look whose sandbox it is", method: "logs",
		effect: trusting(func(q *provider.LogsRequest) *string { return &q.Owner }, nil,
			func(q provider.LogsRequest) string { return q.SandboxID },
			func(ctx context.Context, c *cloud, q provider.LogsRequest) (any, error) { return c.Logs(ctx, q) })},
	{check: "housekeeping/list-session", does: "List ignores the session", method: "list",
		effect: before(func(ctx context.Context, c *call) error {
			q := c.request.(provider.ListRequest)
			q.Session, c.answered = "", true
			all, err := c.faulty.cloud.List(ctx, q)
			*c.reply.(*[]provider.Sandbox) = all
			return err
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
	{check: "housekeeping/renew-holds", does: "Renew answers with an end, and does not arm it", method: "renew", effect: before(renewUnarmed)},
	{check: "housekeeping/renew-ends", does: "Renew disarms the end of a life", method: "renew", effect: after(disarm)},
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

	{check: "housekeeping/logs", form: "limit", does: "Logs gives every line", method: "logs",
		effect: before(func(ctx context.Context, c *call) error {
			q := c.request.(provider.LogsRequest)
			q.Lines, c.answered = 1000, true
			all, err := c.faulty.cloud.Logs(ctx, q)
			*c.reply.(*[]string) = all
			return err
		})},
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

	{check: "end/endpoint-lasts", does: "an endpoint's token expires, and nothing says so", method: "configure",
		effect: before(func(_ context.Context, c *call) error { c.faulty.cloud.tokenLife = 1500 * time.Millisecond; return nil })},
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
	{check: "secrets/errors", form: "base64", does: "errors of Attach quote the header of basic authentication", method: "attach",
		effect: effect{failed: func(_ context.Context, c *call, err error) error {
			e := *provider.AsError(err)
			e.Message += ", with Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte("api:"+c.faulty.cloud.config.APIKey))
			return &e
		}}},
	{check: "secrets/stderr", does: "StartServer writes api_key to standard error", method: "start", effect: before(leakSecret)},
	{check: "secrets/stderr", form: "base64", does: "StartServer writes the header of basic authentication to standard error", method: "start",
		effect: leaks(func(key string) string { return base64.StdEncoding.EncodeToString([]byte("api:" + key)) })},
	{check: "secrets/stderr", form: "hex", does: "StartServer writes api_key to standard error, in hex", method: "start",
		effect: leaks(func(key string) string { return hex.EncodeToString([]byte(key)) })},
	{check: "secrets/stderr", form: "url", does: "StartServer writes a URL with api_key to standard error", method: "start",
		effect: leaks(func(key string) string { return "https://mock.invalid/?api_key=" + url.QueryEscape(key) })},
}

// leaks writes a form of the key to standard error.
func leaks(form func(key string) string) effect {
	return before(func(_ context.Context, c *call) error {
		fmt.Fprintf(c.faulty.stderr, "mock: calling the cloud with %s\n", form(c.faulty.cloud.config.APIKey))
		return nil
	})
}

func gone(c *call, _ error) error {
	*c.reply.(*provider.PingResult) = provider.PingResult{Status: provider.PingGone, Reason: "mock: told to say so"}
	return nil
}

// headerless takes headers out of answers, and opens what they opened.
func headerless(without func(*cloud, *provider.Endpoints)) effect {
	return after(func(_ context.Context, c *call) error {
		switch reply := c.reply.(type) {
		case *provider.Endpoints:
			without(c.faulty.cloud, reply)
		case *provider.Sandbox:
			if reply.Endpoints != nil {
				without(c.faulty.cloud, reply.Endpoints)
			}
		}
		return nil
	})
}

// createUnseen makes a sandbox of its own for a session that has one which another process has just made.
func createUnseen(ctx context.Context, f *faulty, q provider.CreateRequest, honest creates) (provider.Sandbox, error) {
	const blind = 10 * time.Second
	m := f.memory
	m.creating.Lock() // within this process Creates do see each other
	defer m.creating.Unlock()
	session := q.Session
	s, err := honest(ctx, q)
	if err == nil && s.Origin == provider.OriginAttached && !m.own[s.ID] && time.Since(s.CreatedAt) < blind {
		q.Session += "-unseen"
		s, err = honest(ctx, q)
		s.Session = session
	}
	if s.Origin == provider.OriginCreated {
		m.own[s.ID] = true
	}
	return s, err
}

// createCut takes sessions for one that differ in case only.
func createCut(ctx context.Context, f *faulty, q provider.CreateRequest, honest creates) (provider.Sandbox, error) {
	session := q.Session
	err := f.cloud.store.do(ctx, func(w *world) error {
		for _, s := range w.Sandboxes {
			if s.Owner == q.Owner && s.liveAt(time.Now()) && strings.EqualFold(s.Session, q.Session) {
				q.Session = s.Session
			}
		}
		return nil
	})
	if err != nil {
		return provider.Sandbox{}, err
	}
	s, err := honest(ctx, q)
	s.Session = session
	return s, err
}

func createUnarmed(ctx context.Context, _ *faulty, q provider.CreateRequest, honest creates) (provider.Sandbox, error) {
	asked := q.Lifetime
	if asked < time.Minute {
		q.Lifetime = time.Hour
	}
	s, err := honest(ctx, q)
	if asked < time.Minute {
		s.ExpiresAt = time.Now().Add(asked)
	}
	return s, err
}

// ownEndpoints lets a process attach with endpoints only to sandboxes whose server it has started.
var ownEndpoints = effect{after: func(_ context.Context, c *call) error {
	m := c.faulty.memory
	m.mutex.Lock()
	defer m.mutex.Unlock()
	switch q := c.request.(type) {
	case provider.StartServerRequest:
		m.own[q.SandboxID] = true
	case provider.AttachRequest:
		if s := c.reply.(*provider.Sandbox); !m.own[s.ID] {
			s.Endpoints = nil
		}
	}
	return nil
}}

// shorten moves the end of a life nearer in an Attach for a minute.
func shorten(ctx context.Context, c *call) error {
	q, found := c.request.(provider.AttachRequest), c.reply.(*provider.Sandbox)
	if q.Lifetime > time.Minute {
		return nil
	}
	return c.faulty.cloud.store.do(ctx, func(w *world) error {
		s := w.Sandboxes[found.ID]
		s.ExpiresAt = endOfLife(time.Now(), q.Lifetime)
		found.ExpiresAt = s.ExpiresAt
		return nil
	})
}

// attachOf attaches to what it should refuse: the sandbox of another session or, unless sameOwner, of another owner.
func attachOf(sameOwner bool) func(context.Context, *faulty, provider.AttachRequest, attaches) (provider.Sandbox, error) {
	return func(ctx context.Context, f *faulty, q provider.AttachRequest, honest attaches) (provider.Sandbox, error) {
		found, failed := honest(ctx, q)
		if provider.CodeOf(failed) != provider.CodeConflict {
			return found, failed
		}
		err := f.cloud.store.do(ctx, func(w *world) error {
			s := w.Sandboxes[q.SandboxID]
			if (s.Owner == q.Owner) != sameOwner {
				return failed
			}
			found = f.cloud.describe(s)
			found.Session, found.Origin = q.Session, provider.OriginAttached
			return nil
		})
		return found, err
	}
}

// dropOther ends the server when another command is asked for, and dropSame unless one is.
func dropOther(ctx context.Context, c *call) error {
	if !asksForOther(c) {
		return nil
	}
	return dropServer(ctx, c)
}

func dropSame(ctx context.Context, c *call) error {
	if asksForOther(c) {
		return nil
	}
	return dropServer(ctx, c)
}

func asksForOther(c *call) bool {
	return strings.Contains(strings.Join(c.request.(provider.StartServerRequest).Server.Command, " "), "process changed")
}

// goneAtFirst makes the first Ping of a server that is on its way say that the sandbox is gone.
func goneAtFirst(_ context.Context, c *call) error {
	m, result := c.faulty.memory, c.reply.(*provider.PingResult)
	m.mutex.Lock()
	defer m.mutex.Unlock()
	id := c.request.(provider.PingRequest).SandboxID
	m.pinged[id]++
	if m.pinged[id] == 1 && (result.Status == provider.PingAlive || result.Status == provider.PingNotYet) {
		*result = provider.PingResult{Status: provider.PingGone, Reason: "mock: told that the listing lags"}
	}
	return nil
}

// wakeUnseen makes Ping wake a suspended sandbox, which is listed as suspended until somebody attaches to it.
var wakeUnseen = effect{after: func(ctx context.Context, c *call) error {
	m := c.faulty.memory
	switch q := c.request.(type) {
	case provider.PingRequest:
		if c.reply.(*provider.PingResult).Status == provider.PingStopped {
			m.mutex.Lock()
			m.stale[q.SandboxID] = true
			m.mutex.Unlock()
		}
		return wakeAfterPing(ctx, c)
	case provider.AttachRequest:
		m.mutex.Lock()
		defer m.mutex.Unlock()
		delete(m.stale, c.reply.(*provider.Sandbox).ID)
	case provider.ListRequest:
		m.mutex.Lock()
		defer m.mutex.Unlock()
		for i, s := range *c.reply.(*[]provider.Sandbox) {
			if m.stale[s.ID] {
				(*c.reply.(*[]provider.Sandbox))[i].State = provider.StateSuspended
			}
		}
	}
	return nil
}}

// renewUnarmed answers for a life that is about to end as if it were prolonged.
func renewUnarmed(ctx context.Context, c *call) error {
	q := c.request.(provider.RenewRequest)
	return c.faulty.cloud.store.do(ctx, func(w *world) error {
		s, err := w.find(time.Now(), q.SandboxRef)
		if err == nil && time.Until(s.ExpiresAt) < time.Minute {
			*c.reply.(*time.Time), c.answered = endOfLife(time.Now(), q.Lifetime), true
		}
		return nil // the honest Renew reports it as well
	})
}

// disarm keeps a sandbox alive that was renewed for a short time.
func disarm(ctx context.Context, c *call) error {
	q := c.request.(provider.RenewRequest)
	return c.faulty.cloud.store.do(ctx, func(w *world) error {
		if s := w.Sandboxes[q.SandboxID]; s != nil && q.Lifetime < time.Minute {
			s.ExpiresAt = time.Now().Add(time.Hour)
		}
		return nil
	})
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

// parseBreach finds a breach by its name.
func parseBreach(name string) (breach, error) {
	var known []string
	for _, b := range breaches {
		if b.name() == name {
			return b, nil
		}
		known = append(known, b.name())
	}
	return breach{}, fmt.Errorf("there is no breach %q; there are %s", name, strings.Join(known, ", "))
}
