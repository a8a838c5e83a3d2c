package connect

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/berth-dev/berth/host/lease"
	"github.com/berth-dev/berth/host/records"
	"github.com/berth-dev/berth/internal/fakecloud"
	"github.com/berth-dev/berth/shared/provider"
)

func TestASessionWithoutASandboxGetsOneWithAHealthyServer(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := fakecloud.New()
		var steps []string
		result, err := connector(c).Connect(t.Context(), request(), func(e Event) {
			if e.Status != StatusProgress {
				steps = append(steps, fmt.Sprintf("%s:%s", e.Phase, e.Status))
			}
			if e.Session != "s1" || e.Provider != "acme" || e.Attempt == "" || e.Time.IsZero() {
				t.Errorf("event without its names: %+v", e)
			}
		})
		ok(t, err)
		same(t, "calls", c.Called(), "attach create start ping")
		same(t, "origin", result.Origin, provider.OriginCreated)
		same(t, "sandbox", result.SandboxID, "sb-1")
		same(t, "pings", result.Pings, 1)
		same(t, "URL", result.Endpoint.URL, "https://box.example")
		same(t, "edge header", result.Endpoint.Headers["X-Edge"], "edge-token")
		same(t, "steps", strings.Join(steps, " "),
			"acquire:started acquire:done start_server:started start_server:done health:started health:done ready:done")
	})
}

func TestTheSessionKeyGoesToTheServersEnvironmentAndTheCallersHeaderOnly(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := fakecloud.New()
		result, err := connector(c).Connect(t.Context(), request(), nil)
		ok(t, err)
		key := result.Endpoint.Headers["X-Session-API-Key"]
		if len(key) < 32 {
			t.Fatalf("no key in the headers: %v", result.Endpoint.Headers)
		}
		same(t, "in the environment", c.Server.Env["SESSION_API_KEY"], key)
		if strings.Contains(strings.Join(c.Server.Command, " "), key) {
			t.Error("the key is in argv")
		}
		again, err := connector(c).Connect(t.Context(), request(), nil)
		ok(t, err)
		same(t, "another process with the same secret", again.Endpoint.Headers["X-Session-API-Key"], key)
		other := request()
		other.Session = "s2"
		second, err := connector(c).Connect(t.Context(), other, nil)
		ok(t, err)
		if second.Endpoint.Headers["X-Session-API-Key"] == key {
			t.Error("two sessions share a key")
		}
	})
}

func TestEverySandboxHasAKeyOfItsOwnThatEveryHostDerives(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := fakecloud.New()
		memory := records.NewMemory()
		key := func(h host) string {
			t.Helper()
			result, err := h.Connect(t.Context(), request(), nil)
			ok(t, err)
			same(t, "in the environment", c.Server.Env["SESSION_API_KEY"], result.Endpoint.Headers["X-Session-API-Key"])
			return result.Endpoint.Headers["X-Session-API-Key"]
		}
		one := hostOf(c, memory, "one")
		first := key(one)
		same(t, "another host's", key(hostOf(c, memory, "two")), first)
		sandbox := c.Find("s1", testOwner)
		label := sandbox.Labels[lease.LabelGeneration]
		same(t, "recorded generation", recordOf(t, one).Generation, label)
		if len(label) < 20 || strings.Contains(first, label) {
			t.Errorf("the generation is %q", label)
		}
		sandbox.State = provider.StateSuspended
		same(t, "after waking", key(one), first)
		same(t, "with records that know nothing", key(hostOf(c, records.NewMemory(), "three")), first)

		// The sandbox ends, and the session gets another one.
		delete(c.Sandboxes, sandbox.ID)
		c.Running = false
		second := key(one)
		if second == first {
			t.Error("the key of a sandbox that is gone opens the next one")
		}
		stranger := New(c, "acme", "another owner", []byte("host secret"), memory.Store("four"))
		others := request()
		others.Session = "s3"
		result, err := stranger.Connect(t.Context(), others, nil)
		ok(t, err)
		if k := result.Endpoint.Headers["X-Session-API-Key"]; k == first || k == second {
			t.Error("two owners share a key")
		}
	})
}

func TestASandboxOfABerthThatKnewNoGenerationsKeepsItsKey(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := fakecloud.New()
		c.Put(provider.Sandbox{Session: "s1", Owner: testOwner, Attempt: "old", State: provider.StateSuspended})
		result, err := connector(c).Connect(t.Context(), request(), nil)
		ok(t, err)
		mac := hmac.New(sha256.New, []byte("host secret"))
		mac.Write([]byte("berth session key\x00s1"))
		want := hex.EncodeToString(mac.Sum(nil))
		same(t, "key", result.Endpoint.Headers["X-Session-API-Key"], want)
		same(t, "in the environment", c.Server.Env["SESSION_API_KEY"], want)
	})
}

func TestAReplacedGenerationCountsMoreThanTheLabel(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := fakecloud.New()
		h := hostOf(c, records.NewMemory(), "one")
		before, err := h.Connect(t.Context(), request(), nil)
		ok(t, err)
		taken, record, err := h.store.Take(t.Context(), "s1")
		ok(t, err)
		record.Generation = "the next one"
		ok(t, h.store.Release(t.Context(), taken, record))
		after, err := h.Connect(t.Context(), request(), nil)
		ok(t, err)
		if after.Endpoint.Headers["X-Session-API-Key"] == before.Endpoint.Headers["X-Session-API-Key"] {
			t.Error("the key is the one before")
		}
		same(t, "generation", recordOf(t, h).Generation, "the next one")
	})
}

func TestAFoundServerThatIsUpIsUsedAsItIs(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := fakecloud.New()
		c.Put(provider.Sandbox{Session: "s1", Owner: testOwner, State: provider.StateRunning})
		c.Running = true
		result, err := connector(c).Connect(t.Context(), request(), nil)
		ok(t, err)
		same(t, "calls", c.Called(), "attach ping")
		same(t, "origin", result.Origin, provider.OriginAttached)
		if result.Endpoint.Headers["X-Session-API-Key"] == "" {
			t.Error("no key for a server that was found")
		}
	})
}

func TestAFoundServerThatIsDownIsStarted(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := fakecloud.New()
		c.Put(provider.Sandbox{Session: "s1", Owner: testOwner, State: provider.StateRunning})
		_, err := connector(c).Connect(t.Context(), request(), nil)
		ok(t, err)
		same(t, "calls", c.Called(), "attach ping start ping")
	})
}

func TestAWokenSandboxGetsItsServerStartedWithoutAsking(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := fakecloud.New()
		c.Put(provider.Sandbox{Session: "s1", Owner: testOwner, State: provider.StateSuspended})
		result, err := connector(c).Connect(t.Context(), request(), nil)
		ok(t, err)
		same(t, "calls", c.Called(), "attach start ping")
		same(t, "origin", result.Origin, provider.OriginWoken)
	})
}

func TestModeAttachNeverCreates(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := fakecloud.New()
		req := request()
		req.Mode = ModeAttach
		_, err := connector(c).Connect(t.Context(), req, nil)
		e := failure(t, err, CodeNotFound)
		same(t, "calls", c.Called(), "attach")
		same(t, "cleanup", e.Cleanup, CleanupNone)
		same(t, "phase", e.Phase, PhaseAcquire)
	})
}

func TestModeCreateRefusesASessionThatHasASandboxWithoutWakingIt(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := fakecloud.New()
		id := c.Put(provider.Sandbox{Session: "s1", Owner: testOwner, State: provider.StateSuspended})
		req := request()
		req.Mode = ModeCreate
		_, err := connector(c).Connect(t.Context(), req, nil)
		e := failure(t, err, CodeAlreadyExists)
		same(t, "sandbox", e.SandboxID, id)
		same(t, "calls", c.Called(), "list")

		// A provider that cannot list finds out by creating; what it adopted stays.
		_, err = connector(bare{c}).Connect(t.Context(), req, nil)
		e = failure(t, err, CodeAlreadyExists)
		same(t, "cleanup", e.Cleanup, CleanupNone)
		same(t, "left", strings.Join(c.Left(), " "), id)
	})
}

func TestAFailedLookUpNeverMakesASecondSandbox(t *testing.T) {
	t.Parallel()
	for _, code := range []provider.Code{
		provider.CodeUnreachable, provider.CodeDenied, provider.CodeExhausted, provider.CodeFailed, provider.CodeTimeout, provider.CodeState,
	} {
		synctest.Test(t, func(t *testing.T) {
			c := fakecloud.New()
			c.OnAttach = func(context.Context) error { return provider.Errorf(code, "no idea") }
			_, err := connector(c).Connect(t.Context(), request(), nil)
			if err == nil || c.Count("create") > 0 {
				t.Errorf("%s: error %v, calls %s", code, err, c.Called())
			}
		})
	}
}

func TestASandboxOfAnotherOwnerIsNotOurs(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := fakecloud.New()
		foreign := c.Put(provider.Sandbox{Session: "s1", Owner: "somebody else", State: provider.StateRunning})
		result, err := connector(c).Connect(t.Context(), request(), nil)
		ok(t, err)
		if result.SandboxID == foreign {
			t.Error("connected to a foreign sandbox")
		}
	})
}

func TestAFailureUndoesWhatThisConnectMadeAndNothingElse(t *testing.T) {
	t.Parallel()
	broken := func(c *fakecloud.Cloud) {
		c.OnStart = func(context.Context) error {
			code := 3
			return provider.ServerExited(&code, []string{"no such module"})
		}
	}
	for found, cleanup := range map[provider.State]Cleanup{
		"": CleanupDone, provider.StateRunning: CleanupNone, provider.StateSuspended: CleanupKept,
	} {
		synctest.Test(t, func(t *testing.T) {
			c := fakecloud.New()
			if found != "" {
				c.Put(provider.Sandbox{Session: "s1", Owner: testOwner, State: found})
			}
			broken(c)
			_, err := connector(c).Connect(t.Context(), request(), nil)
			e := failure(t, err, CodeServerExited)
			same(t, "exit code", *e.ExitCode, 3)
			same(t, "log tail", strings.Join(e.LogTail, "\n"), "no such module")
			same(t, "sandbox", e.SandboxID, "sb-1")
			same(t, "phase", e.Phase, PhaseStartServer)
			same(t, "cleanup", e.Cleanup, cleanup)
			if found == "" {
				nothingLeft(t, c)
			} else {
				same(t, "left of "+string(found), strings.Join(c.Left(), " "), "sb-1")
			}
		})
	}
}

func TestAnUndoThatFailsNamesTheSandbox(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := fakecloud.New()
		c.OnStart = func(context.Context) error { return provider.Errorf(provider.CodeFailed, "no") }
		c.OnDestroy = func(context.Context) error { return provider.Errorf(provider.CodeDenied, "may not delete") }
		_, err := connector(c).Connect(t.Context(), request(), nil)
		e := failure(t, err, CodeStartFailed)
		same(t, "cleanup", e.Cleanup, CleanupFailed)
		if !strings.Contains(e.CleanupError, "sb-1") || !strings.Contains(e.CleanupError, "may not delete") {
			t.Errorf("cleanup error: %s", e.CleanupError)
		}
	})
}

func TestAnUndoInsistsWhenTheProviderIsBusy(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := fakecloud.New()
		c.OnStart = func(context.Context) error { return provider.Errorf(provider.CodeFailed, "no") }
		refusals := 3
		c.OnDestroy = func(context.Context) error {
			if refusals--; refusals >= 0 {
				return &provider.Error{Code: provider.CodeExhausted, Retryable: true, RetryAfter: 5 * time.Second}
			}
			return nil
		}
		began := time.Now()
		_, err := connector(c).Connect(t.Context(), request(), nil)
		same(t, "cleanup", failure(t, err, CodeStartFailed).Cleanup, CleanupDone)
		nothingLeft(t, c)
		if took := time.Since(began); took < 15*time.Second {
			t.Errorf("three refusals of 5 s each were waited for only %s", took)
		}
	})
}

func TestWhatALostCreateMadeIsFoundEvenIfTheListingLags(t *testing.T) {
	t.Parallel()
	for _, code := range []provider.Code{provider.CodeUnreachable, provider.CodeTimeout, provider.CodeFailed, provider.CodeInternal} {
		synctest.Test(t, func(t *testing.T) {
			c := fakecloud.New()
			c.ListLag = 1500 * time.Millisecond
			c.OnCreate = func(_ context.Context, made func() provider.Sandbox) (provider.Sandbox, error) {
				made()
				return provider.Sandbox{}, provider.Errorf(code, "the answer was lost")
			}
			_, err := connector(c).Connect(t.Context(), request(), nil)
			if err == nil {
				t.Fatal("no error")
			}
			same(t, "cleanup", err.(*Error).Cleanup, CleanupDone)
			nothingLeft(t, c)
		})
	}
}

func TestACreateThatCannotHaveMadeAnythingIsNotLookedFor(t *testing.T) {
	t.Parallel()
	for code, want := range map[provider.Code]Code{
		provider.CodeInvalid: CodeInvalidConfig, provider.CodeDenied: CodeDenied,
		provider.CodeExhausted: CodeRateLimited, provider.CodeConflict: CodeAlreadyExists,
	} {
		synctest.Test(t, func(t *testing.T) {
			c := fakecloud.New()
			c.OnCreate = func(context.Context, func() provider.Sandbox) (provider.Sandbox, error) {
				return provider.Sandbox{}, provider.Errorf(code, "no")
			}
			_, err := connector(c).Connect(t.Context(), request(), nil)
			same(t, "cleanup", failure(t, err, want).Cleanup, CleanupNone)
			same(t, "calls", c.Called(), "attach create")
		})
	}
}

func TestAFailedCreateThatNamesItsSandboxIsDestroyed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := fakecloud.New()
		c.OnCreate = func(_ context.Context, made func() provider.Sandbox) (provider.Sandbox, error) {
			return provider.Sandbox{}, &provider.Error{Code: provider.CodeExhausted, Reason: provider.ReasonQuota, SandboxID: made().ID}
		}
		_, err := connector(c).Connect(t.Context(), request(), nil)
		same(t, "cleanup", failure(t, err, CodeQuota).Cleanup, CleanupDone)
		nothingLeft(t, c)
	})
}

func TestAPluginThatCrashesInCreateIsNotAskedToCreateAgain(t *testing.T) {
	t.Parallel()
	crash := &provider.Error{Code: provider.CodeUnreachable, Reason: provider.ReasonPluginCrashed, Retryable: true, Message: "crashed"}
	for _, acted := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			c := fakecloud.New()
			c.OnCreate = func(_ context.Context, made func() provider.Sandbox) (provider.Sandbox, error) {
				if acted {
					made()
				}
				return provider.Sandbox{}, crash
			}
			result, err := connector(c).Connect(t.Context(), request(), nil)
			same(t, "creates", c.Count("create"), 1)
			if acted { // what it made is found and used
				ok(t, err)
				same(t, "origin", result.Origin, provider.OriginCreated)
				return
			}
			same(t, "cleanup", failure(t, err, CodePluginFailed).Cleanup, CleanupDone)
			nothingLeft(t, c)
		})
	}
}

func TestASandboxAdoptedAfterACrashIsStillUndone(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := fakecloud.New()
		c.OnCreate = func(_ context.Context, made func() provider.Sandbox) (provider.Sandbox, error) {
			made()
			return provider.Sandbox{}, &provider.Error{Code: provider.CodeUnreachable, Reason: provider.ReasonPluginCrashed}
		}
		c.OnStart = func(context.Context) error { return provider.Errorf(provider.CodeFailed, "no") }
		_, err := connector(c).Connect(t.Context(), request(), nil)
		same(t, "cleanup", failure(t, err, CodeStartFailed).Cleanup, CleanupDone)
		nothingLeft(t, c)
	})
}

func TestCallsThatAreSafeToRepeatSurviveOneCrash(t *testing.T) {
	t.Parallel()
	crashes := func(n int) func(context.Context) error {
		return func(context.Context) error {
			if n--; n >= 0 {
				return &provider.Error{Code: provider.CodeUnreachable, Reason: provider.ReasonPluginCrashed}
			}
			return nil
		}
	}
	synctest.Test(t, func(t *testing.T) {
		c := fakecloud.New()
		c.OnAttach, c.OnStart = crashes(1), crashes(1)
		pings := 0
		c.OnPing = func(context.Context, time.Duration) (provider.PingResult, error) {
			if pings++; pings == 1 {
				return provider.PingResult{}, &provider.Error{Code: provider.CodeUnreachable, Reason: provider.ReasonPluginCrashed}
			}
			return provider.PingResult{Status: provider.PingAlive}, nil
		}
		_, err := connector(c).Connect(t.Context(), request(), nil)
		ok(t, err)
		same(t, "calls", c.Called(), "attach attach create start start ping ping")
	})
	synctest.Test(t, func(t *testing.T) {
		c := fakecloud.New()
		c.OnStart = crashes(2)
		_, err := connector(c).Connect(t.Context(), request(), nil)
		failure(t, err, CodePluginFailed)
		nothingLeft(t, c)
	})
}

func TestCancelInEveryPhaseEndsTheConnectAndUndoesIt(t *testing.T) {
	t.Parallel()
	hang := func(ctx context.Context) error {
		<-ctx.Done()
		return ctx.Err()
	}
	for phase, arrange := range map[Phase]func(*fakecloud.Cloud){
		PhaseAcquire:     func(c *fakecloud.Cloud) { c.OnAttach = hang },
		PhaseStartServer: func(c *fakecloud.Cloud) { c.OnStart = hang },
		PhaseHealth:      func(c *fakecloud.Cloud) { c.BootTime = time.Hour },
	} {
		synctest.Test(t, func(t *testing.T) {
			c := fakecloud.New()
			arrange(c)
			ctx, cancel := context.WithCancel(t.Context())
			time.AfterFunc(2500*time.Millisecond, cancel)
			began := time.Now()
			_, err := connector(c).Connect(ctx, request(), nil)
			e := failure(t, err, CodeCancelled)
			same(t, "phase", e.Phase, phase)
			same(t, "time", time.Since(began), 2500*time.Millisecond)
			nothingLeft(t, c)
		})
	}
}

func TestACreateUnderWayIsGivenAMomentToAnswerWhenTheCallerGoes(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := fakecloud.New()
		c.OnCreate = func(_ context.Context, made func() provider.Sandbox) (provider.Sandbox, error) {
			time.Sleep(2 * time.Second) // the cloud works on, whatever the caller does
			return made(), nil
		}
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		_, err := connector(c).Connect(ctx, request(), nil)
		e := failure(t, err, CodeCancelled)
		same(t, "cleanup", e.Cleanup, CleanupDone)
		same(t, "calls", c.Called(), "attach create destroy:sb-1")
		nothingLeft(t, c)
	})
}

// TestACreateThatWokeASandboxSaysThatItStaysAwake: a plugin whose Create finds the session's sandbox adopts it, and the
// answer may come in time or when nobody waits any more.
func TestACreateThatWokeASandboxSaysThatItStaysAwake(t *testing.T) {
	t.Parallel()
	for _, late := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			c := fakecloud.New()
			id := c.Put(provider.Sandbox{Session: "s1", Owner: testOwner, State: provider.StateSuspended})
			c.OnAttach = func(context.Context) error { return provider.Errorf(provider.CodeNotFound, "the index lags") }
			c.OnStart = func(context.Context) error { return provider.Errorf(provider.CodeFailed, "no such command") }
			c.OnCreate = func(context.Context, func() provider.Sandbox) (provider.Sandbox, error) { panic("there is one") }
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			code, cloud := CodeStartFailed, adopting{c, func() {}}
			if late {
				code, cloud.before = CodeCancelled, func() { cancel(); synctest.Wait() } // until nobody waits
			}
			_, err := connector(cloud).Connect(ctx, request(), nil)
			same(t, "cleanup", failure(t, err, code).Cleanup, CleanupKept)
			same(t, "left", strings.Join(c.Left(), " "), id)
		})
	}
}

// adopting is a cloud whose Create wakes the session's sandbox. Before it does, it calls before.
type adopting struct {
	*fakecloud.Cloud
	before func()
}

func (c adopting) Create(ctx context.Context, r provider.CreateRequest) (provider.Sandbox, error) {
	c.before()
	sandbox, err := c.Cloud.Create(ctx, r)
	sandbox.Origin = provider.OriginWoken
	return sandbox, err
}

func TestACreateThatNeverAnswersIsCancelledAndLookedFor(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := fakecloud.New()
		c.OnCreate = func(ctx context.Context, made func() provider.Sandbox) (provider.Sandbox, error) {
			made()
			<-ctx.Done()
			return provider.Sandbox{}, ctx.Err()
		}
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		began := time.Now()
		_, err := connector(c).Connect(ctx, request(), nil)
		same(t, "cleanup", failure(t, err, CodeCancelled).Cleanup, CleanupDone)
		same(t, "time", time.Since(began), time.Second+createGrace)
		nothingLeft(t, c)
	})
}

func TestEveryStepHasItsLimitInsideOneDeadline(t *testing.T) {
	t.Parallel()
	hang := func(ctx context.Context) error {
		<-ctx.Done()
		return ctx.Err()
	}
	for _, test := range []struct {
		name    string
		arrange func(*fakecloud.Cloud, *Request)
		want    Code
		after   time.Duration
	}{
		{"attach", func(c *fakecloud.Cloud, r *Request) { c.OnAttach = hang }, CodeAttachFailed, 5 * time.Minute},
		{"start", func(c *fakecloud.Cloud, r *Request) { c.OnStart = hang }, CodeStartFailed, time.Minute},
		{"health", func(c *fakecloud.Cloud, r *Request) { c.BootTime = time.Hour }, CodeHealthTimeout, 2 * time.Minute},
		{"total", func(c *fakecloud.Cloud, r *Request) { c.BootTime, r.Limits.Total = time.Hour, 10*time.Second }, CodeDeadline, 10 * time.Second},
	} {
		synctest.Test(t, func(t *testing.T) {
			c, req := fakecloud.New(), request()
			test.arrange(c, &req)
			began := time.Now()
			_, err := connector(c).Connect(t.Context(), req, nil)
			failure(t, err, test.want)
			same(t, test.name, time.Since(began), test.after)
			nothingLeft(t, c)
		})
	}
}

func TestTheCallersDeadlineIsADeadlineNotACancel(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := fakecloud.New()
		c.BootTime = time.Hour
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		_, err := connector(c).Connect(ctx, request(), nil)
		failure(t, err, CodeDeadline)
		nothingLeft(t, c)
	})
}

func TestRequestsThatNoProviderCouldServeAreRefusedBeforeAnyCall(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*Request){
		"no session":     func(r *Request) { r.Session = "" },
		"odd session":    func(r *Request) { r.Session = "a b" },
		"option-like":    func(r *Request) { r.Session = "-s" },
		"endless":        func(r *Request) { r.Session = strings.Repeat("x", 129) },
		"unknown mode":   func(r *Request) { r.Mode = "maybe" },
		"nothing to run": func(r *Request) { r.Server.Command = nil },
	} {
		c, req := fakecloud.New(), request()
		change(&req)
		_, err := connector(c).Connect(t.Context(), req, nil)
		failure(t, err, CodeInvalidConfig)
		same(t, name, c.Called(), "")
	}
}

func TestErrorsKeepTheirCause(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := fakecloud.New()
		cause := &provider.Error{Code: provider.CodeExhausted, Reason: provider.ReasonRateLimit, RetryAfter: time.Second, Retryable: true}
		c.OnAttach = func(context.Context) error { return cause }
		_, err := connector(c).Connect(t.Context(), request(), nil)
		e := failure(t, err, CodeRateLimited)
		var p *provider.Error
		if !errors.As(err, &p) || p != cause || e.RetryAfter != time.Second || !e.Retryable {
			t.Errorf("lost on the way: %+v", e)
		}
	})
}

func TestAConnectEndsAtItsDeadlineAndTheUndoSaysWhatItWaitsFor(t *testing.T) {
	t.Parallel()
	for name, late := range map[string]bool{"the create answers late": true, "the create never answers": false} {
		synctest.Test(t, func(t *testing.T) {
			c := fakecloud.New()
			c.OnCreate = func(ctx context.Context, made func() provider.Sandbox) (provider.Sandbox, error) {
				if late {
					time.Sleep(4 * time.Second)
					return made(), nil
				}
				<-ctx.Done()
				return provider.Sandbox{}, ctx.Err()
			}
			req := request()
			req.Limits.Total = 3 * time.Second
			began := time.Now()
			var ended, undoing time.Duration
			var told []string
			_, err := connector(c).Connect(t.Context(), req, func(e Event) {
				switch {
				case e.Phase == PhaseAcquire && e.Status == StatusFailed:
					ended = time.Since(began)
				case e.Phase == PhaseUndo && e.Status == StatusStarted:
					undoing = time.Since(began)
				case e.Phase == PhaseUndo && e.Status == StatusProgress:
					told = append(told, e.Message)
				}
			})
			e := failure(t, err, CodeDeadline)
			same(t, name+": the connect ended after", ended, 3*time.Second)
			same(t, name+": the undo began after", undoing, 3*time.Second)
			same(t, name+": the message", e.Message, "not connected within the overall deadline of 3s (given up after 3s)")
			same(t, name+": the limit", e.Limit, Limit{LimitTotal, 3 * time.Second, 3 * time.Second})
			same(t, name+": cleanup", e.Cleanup, CleanupDone)
			if text := strings.Join(told, "; "); !strings.Contains(text, "waiting for what the provider answers") ||
				!late && !strings.Contains(text, "looking for what attempt") {
				t.Errorf("%s: the undo tells %q", name, text)
			}
			nothingLeft(t, c)
		})
	}
}

func TestALateRefusalOfACreateLeavesNothingToUndo(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := fakecloud.New()
		c.OnCreate = func(context.Context, func() provider.Sandbox) (provider.Sandbox, error) {
			time.Sleep(4 * time.Second)
			return provider.Sandbox{}, provider.Errorf(provider.CodeDenied, "no")
		}
		req := request()
		req.Limits.Total = 3 * time.Second
		_, err := connector(c).Connect(t.Context(), req, nil)
		same(t, "cleanup", failure(t, err, CodeDeadline).Cleanup, CleanupDone)
		same(t, "calls", c.Called(), "attach create")
	})
}

func TestAMessageHasTheLimitThatWasSetAndTheTimeThatWasTaken(t *testing.T) {
	t.Parallel()
	for want, limit := range map[string]Limit{
		"the overall deadline of 1s (given up after 1.2s)": {LimitTotal, time.Second, 1234 * time.Millisecond},
		"the limit of 5m0s (given up after 5m0s)":          {LimitCreate, 5 * time.Minute, 5*time.Minute + 3*time.Millisecond},
		"the limit of 300ms (given up after 301ms)":        {LimitHealth, 300 * time.Millisecond, 301 * time.Millisecond},
	} {
		same(t, "the text", limit.String(), want)
	}
}

func TestAServerWithoutAnEnvironmentGetsTheKey(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c, req := fakecloud.New(), request()
		req.Server.Env = nil
		result, err := connector(c).Connect(t.Context(), req, nil)
		ok(t, err)
		same(t, "key", c.Server.Env["SESSION_API_KEY"], result.Endpoint.Headers["X-Session-API-Key"])
	})
}

func TestWhoCanReachAnAddress(t *testing.T) {
	t.Parallel()
	for address, want := range map[string]bool{
		"http://localhost:8000": true, "http://127.0.0.1:8000": true, "http://127.8.9.1": true, "http://[::1]:8000": true,
		"http://10.0.0.1": false, "https://box.example": false, "http://localhost.example": false, "http://0.0.0.0:1": false, "http://%": false,
	} {
		same(t, address, isLoopback(address), want)
	}
}
