package connect

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/berth-dev/berth/host/records"
	"github.com/berth-dev/berth/internal/fakecloud"
	"github.com/berth-dev/berth/shared/provider"
)

// listless is a cloud that cannot list.
type listless struct {
	provider.Provider
	provider.Destroyer
}

func TestAnUndoDestroysOnlyWhatIsSeenToBeItsOwn(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		// create answers for a cloud that has the sandbox sb-1 of somebody else.
		create  func(made func() provider.Sandbox) (provider.Sandbox, error)
		other   provider.Sandbox
		lag     time.Duration
		cannot  bool // list
		cleanup Cleanup
		left    string
	}{
		"it names another session's": {
			create: func(func() provider.Sandbox) (provider.Sandbox, error) {
				return provider.Sandbox{}, &provider.Error{Code: provider.CodeFailed, SandboxID: "sb-1", Message: "half made"}
			},
			other: provider.Sandbox{Session: "s2", Owner: testOwner}, cleanup: CleanupDone, left: "sb-1",
		},
		"its reply was refused": {
			create: func(made func() provider.Sandbox) (provider.Sandbox, error) {
				return made(), &provider.Error{Code: provider.CodeInternal, Reason: provider.ReasonInvalidReply, SandboxID: "sb-1", Message: "no"}
			},
			other: provider.Sandbox{Session: "s2", Owner: "somebody else"}, cleanup: CleanupDone, left: "sb-1",
		},
		"it names its own": {
			create: func(made func() provider.Sandbox) (provider.Sandbox, error) {
				return provider.Sandbox{}, &provider.Error{Code: provider.CodeFailed, SandboxID: made().ID, Message: "half made"}
			},
			other: provider.Sandbox{Session: "s2", Owner: testOwner}, cleanup: CleanupDone, left: "sb-1",
		},
		"it names its own, and the listing lags for long": {
			create: func(made func() provider.Sandbox) (provider.Sandbox, error) {
				return provider.Sandbox{}, &provider.Error{Code: provider.CodeFailed, SandboxID: made().ID, Message: "half made"}
			},
			other: provider.Sandbox{Session: "s2", Owner: testOwner}, lag: time.Hour, cleanup: CleanupDone, left: "sb-1",
		},
		"it names its own, and cannot list": {
			create: func(made func() provider.Sandbox) (provider.Sandbox, error) {
				return provider.Sandbox{}, &provider.Error{Code: provider.CodeFailed, SandboxID: made().ID, Message: "half made"}
			},
			other: provider.Sandbox{Session: "s2", Owner: testOwner}, cannot: true, cleanup: CleanupDone, left: "sb-1",
		},
		"its answer is lost, and it cannot list": {
			create: func(made func() provider.Sandbox) (provider.Sandbox, error) {
				made()
				return provider.Sandbox{}, &provider.Error{Code: provider.CodeInternal, Reason: provider.ReasonTransport, Message: "too large"}
			},
			other: provider.Sandbox{Session: "s2", Owner: testOwner}, cannot: true, cleanup: CleanupDone, left: "sb-1",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				c := fakecloud.New()
				test.other.State = provider.StateRunning
				c.Put(test.other)
				c.ListLag = test.lag
				c.OnCreate = func(_ context.Context, made func() provider.Sandbox) (provider.Sandbox, error) {
					return test.create(made)
				}
				p := provider.Provider(c)
				if test.cannot {
					p = listless{c, c}
				}
				_, err := connector(p).Connect(t.Context(), request(), nil)
				if err == nil {
					t.Fatal("no error")
				}
				same(t, "cleanup", err.(*Error).Cleanup, test.cleanup)
				same(t, "left", strings.Join(c.Left(), " "), test.left)
			})
		})
	}
}

func TestAnErrorOfTheTransportIsThePluginsAndMayHaveMadeSomething(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := fakecloud.New()
		c.OnCreate = func(_ context.Context, made func() provider.Sandbox) (provider.Sandbox, error) {
			made()
			return provider.Sandbox{}, &provider.Error{Code: provider.CodeInternal, Reason: provider.ReasonTransport, Message: "too large"}
		}
		_, err := connector(c).Connect(t.Context(), request(), nil)
		same(t, "cleanup", failure(t, err, CodePluginFailed).Cleanup, CleanupDone)
		nothingLeft(t, c)
	})
}

func TestAConnectionThatIsLostOnceDoesNotEndTheHealthWait(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := fakecloud.New()
		pings := 0
		c.OnPing = func(context.Context, time.Duration) (provider.PingResult, error) {
			if pings++; pings == 1 {
				return provider.PingResult{}, &provider.Error{Code: provider.CodeInternal, Reason: provider.ReasonTransport, Retryable: true, Message: "reset"}
			}
			return provider.PingResult{Status: provider.PingAlive}, nil
		}
		_, err := connector(c).Connect(t.Context(), request(), nil)
		ok(t, err)
	})
}

// open is a request for a server that takes no key.
func open() Request {
	req := request()
	req.Server.KeyHeader = ""
	return req
}

func TestNoWayToReadyHandsOutAServerThatIsOpenToAnyone(t *testing.T) {
	t.Parallel()
	for way, put := range map[string]func(c *fakecloud.Cloud){
		"created": func(*fakecloud.Cloud) {},
		"woken": func(c *fakecloud.Cloud) {
			c.Put(provider.Sandbox{Session: "s1", Owner: testOwner, State: provider.StateSuspended})
		},
		"attached, healthy": func(c *fakecloud.Cloud) {
			c.Running = true
			c.Put(provider.Sandbox{Session: "s1", Owner: testOwner, State: provider.StateRunning})
		},
		"attached, dead": func(c *fakecloud.Cloud) {
			c.Put(provider.Sandbox{Session: "s1", Owner: testOwner, State: provider.StateRunning})
		},
	} {
		t.Run(way, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				c := fakecloud.New()
				c.Endpoint.Headers = nil
				put(c)
				found := strings.Join(c.Left(), " ")
				on := connector(c)
				_, err := on.Connect(t.Context(), open(), nil)
				same(t, "reason", failure(t, err, CodeStartFailed).Reason, ReasonOpenServer)
				same(t, "left", strings.Join(c.Left(), " "), found)

				allowed := open()
				allowed.Server.AllowPublic = true
				_, err = on.Connect(t.Context(), allowed, nil)
				ok(t, err)
				_, err = on.Connect(t.Context(), request(), nil) // a server with a key of its own
				ok(t, err)
			})
		})
	}
}

// telling is a cloud that says which headers it needs.
type telling struct{ *fakecloud.Cloud }

func (telling) Describe(context.Context) (provider.Description, error) {
	return provider.Description{EndpointHeaders: []string{"X-Other", "AUTHORIZATION"}}, nil
}

func TestAHeaderThatAProviderSaysItNeedsIsRefusedBeforeAnythingIsMade(t *testing.T) {
	t.Parallel()
	c := fakecloud.New()
	req := request()
	req.Server.KeyHeader = "Authorization"
	_, err := connector(telling{c}).Connect(t.Context(), req, nil)
	e := failure(t, err, CodeInvalidConfig)
	same(t, "reason", e.Reason, ReasonHeaderConflict)
	same(t, "cleanup", e.Cleanup, CleanupNone)
	same(t, "calls", c.Called(), "")
	if !strings.Contains(e.Message, "Authorization") || !strings.Contains(e.Message, "AUTHORIZATION") {
		t.Errorf("message %q", e.Message)
	}
	_, err = connector(telling{c}).Connect(t.Context(), request(), nil)
	ok(t, err)
}

func TestAHeaderThatBothTheProviderAndTheServerNeedIsRefused(t *testing.T) {
	t.Parallel()
	for _, running := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			c := fakecloud.New()
			c.Endpoint.Headers = map[string]string{"authorization": "Bearer of the provider"}
			if running {
				c.Running = true
				c.Put(provider.Sandbox{Session: "s1", Owner: testOwner, State: provider.StateRunning})
			}
			req := request()
			req.Server.KeyHeader = "Authorization"
			_, err := connector(c).Connect(t.Context(), req, nil)
			e := failure(t, err, CodeInvalidConfig)
			same(t, "reason", e.Reason, ReasonHeaderConflict)
			if !strings.Contains(e.Message, "Authorization") || !strings.Contains(e.Message, "acme needs authorization") || e.Retryable {
				t.Errorf("message %q, retryable %t", e.Message, e.Retryable)
			}
			same(t, "sandboxes left", len(c.Left()) == 1, running)
			_, err = connector(c).Probe(t.Context(), req, records.Record{}, "")
			if running && err == nil {
				t.Error("a probe sent the server's key in place of the provider's")
			}
		})
	}
}
