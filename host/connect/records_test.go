package connect

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/berth-dev/berth/host/fence"
	"github.com/berth-dev/berth/host/records"
	"github.com/berth-dev/berth/shared/provider"
)

// host is one of several hosts with the same records and the same cloud.
type host struct {
	*Connector
	store *records.MemoryStore
}

func hostOf(p provider.Provider, memory *records.Memory, name string) host {
	store := memory.Store(name)
	return host{New(p, "acme", testOwner, []byte("host secret"), store), store}
}

func recordOf(t *testing.T, h host) records.Record {
	t.Helper()
	record, err := h.store.Get(t.Context(), "s1")
	ok(t, err)
	return record
}

// faulty is a store whose writes fail on request.
type faulty struct {
	records.Store
	save, release, check func(records.Record) error
}

func (f *faulty) Save(ctx context.Context, l records.Lease, r records.Record) error {
	if f.save != nil {
		if err := f.save(r); err != nil {
			return err
		}
	}
	return f.Store.Save(ctx, l, r)
}

func (f *faulty) Release(ctx context.Context, l records.Lease, r records.Record) error {
	if f.release != nil {
		if err := f.release(r); err != nil {
			return err
		}
	}
	return f.Store.Release(ctx, l, r)
}

func (f *faulty) Check(ctx context.Context, l records.Lease) error {
	if f.check != nil {
		return f.check(records.Record{})
	}
	return f.Store.Check(ctx, l)
}

func TestTheIntentIsRecordedBeforeCreateAndTheConnectionAfter(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCloud()
		h := hostOf(c, records.NewMemory(), "one")
		var during records.Record
		c.onCreate = func(_ context.Context, made func() provider.Sandbox) (provider.Sandbox, error) {
			during = recordOf(t, h)
			return made(), nil
		}
		var starting records.Record
		c.onStart = func(context.Context) error { starting = recordOf(t, h); return nil }
		result, err := h.Connect(t.Context(), request(), nil)
		ok(t, err)
		same(t, "state before the create", during.State, records.StateCreating)
		same(t, "provider", during.Provider, "acme")
		same(t, "holder", during.Holder, "one")
		if during.Attempt == "" || during.SandboxID != "" {
			t.Errorf("before the create: %+v", during)
		}
		same(t, "sandbox before the start", starting.SandboxID, result.SandboxID)
		same(t, "state before the start", starting.State, records.StateCreating)
		after := recordOf(t, h)
		same(t, "state after", after.State, records.StateRunning)
		same(t, "sandbox after", after.SandboxID, result.SandboxID)
		same(t, "attempt", after.Attempt, c.find("s1", testOwner).Attempt)
		same(t, "holder after", after.Holder, "")
	})
}

func TestASecondHostWaitsAndGetsTheSameSandbox(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCloud()
		c.bootTime = 20 * time.Second
		memory := records.NewMemory()
		one, two := hostOf(c, memory, "one"), hostOf(c, memory, "two")
		first := make(chan Result, 1)
		go func() {
			result, err := one.Connect(t.Context(), request(), nil)
			ok(t, err)
			first <- result
		}()
		synctest.Wait()
		var said []string
		result, err := two.Connect(t.Context(), request(), func(e Event) {
			if e.Status == StatusProgress {
				said = append(said, e.Message)
			}
		})
		ok(t, err)
		same(t, "sandbox", result.SandboxID, (<-first).SandboxID)
		same(t, "origin", result.Origin, provider.OriginAttached)
		same(t, "creates", c.count("create"), 1)
		if len(said) != 1 || !strings.Contains(said[0], "one is working on this session") {
			t.Errorf("progress: %q", said)
		}
	})
}

func TestAConnectThatWaitsInVainNamesTheHostAtWork(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCloud()
		memory := records.NewMemory()
		one, two := hostOf(c, memory, "one"), hostOf(c, memory, "two")
		_, _, err := one.store.Claim(t.Context(), "s1")
		ok(t, err)
		req := request()
		req.Limits.Total = time.Minute
		_, err = two.Connect(t.Context(), req, nil)
		e := failure(t, err, CodeDeadline)
		if !strings.Contains(e.Message, "waiting for one") {
			t.Error(e.Message)
		}
		same(t, "calls", c.called(), "")
	})
}

func TestAHostThatLostItsLeaseChangesNothingAnyMore(t *testing.T) {
	t.Parallel()
	for name, loseAt := range map[string]func(*cloud, func()){
		"while creating": func(c *cloud, lose func()) {
			c.onCreate = func(_ context.Context, made func() provider.Sandbox) (provider.Sandbox, error) {
				lose()
				return made(), nil
			}
		},
		"while a create fails": func(c *cloud, lose func()) {
			c.onCreate = func(_ context.Context, made func() provider.Sandbox) (provider.Sandbox, error) {
				lose()
				made()
				return provider.Sandbox{}, provider.Errorf(provider.CodeUnreachable, "connection reset")
			}
		},
		"while attaching": func(c *cloud, lose func()) {
			c.onAttach = func(context.Context) error { lose(); return nil }
		},
		"while starting a server that fails": func(c *cloud, lose func()) {
			c.onStart = func(context.Context) error {
				lose()
				return provider.Errorf(provider.CodeFailed, "no such command")
			}
		},
		"during the health wait": func(c *cloud, lose func()) {
			c.onPing = func(context.Context, time.Duration) (provider.PingResult, error) {
				lose()
				return provider.PingResult{Status: provider.PingAlive}, nil
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				c := newCloud()
				memory := records.NewMemory()
				one, two := hostOf(c, memory, "one"), hostOf(c, memory, "two")
				var atLoss []string
				loseAt(c, func() { one.store.End(); atLoss = strings.Fields(c.called()) })
				_, err := one.Connect(t.Context(), request(), nil)
				if !errors.Is(err, records.ErrLost) && failureCleanup(err) != CleanupPending {
					t.Errorf("got %v, cleanup %s", err, failureCleanup(err))
				}
				for _, call := range strings.Fields(c.called())[len(atLoss):] {
					if call != "list" && call != "ping" {
						t.Errorf("after it lost its lease it called %s", call)
					}
				}
				c.onCreate, c.onAttach, c.onStart, c.onPing = nil, nil, nil, nil
				result, err := two.Connect(t.Context(), request(), nil)
				ok(t, err)
				same(t, "left", strings.Join(c.left(), " "), result.SandboxID)
				same(t, "recorded", recordOf(t, two).SandboxID, result.SandboxID)
			})
		})
	}
}

func TestACallThatWaitsIsNotMadeOnceTheLeaseIsLost(t *testing.T) {
	t.Parallel()
	disconnect := func(ctx context.Context, h host) { _, _ = h.Disconnect(ctx, "s1", ActionDestroy, nil) }
	connect := func(ctx context.Context, h host) { _, _ = h.Connect(ctx, request(), nil) }
	failing := provider.Errorf(provider.CodeFailed, "no such command")
	for name, test := range map[string]struct {
		waitAt func(*cloud, func(context.Context) error)
		do     func(context.Context, host)
	}{
		"attach": {func(c *cloud, wait func(context.Context) error) { c.onAttach = wait }, connect},
		"create": {func(c *cloud, wait func(context.Context) error) {
			c.onCreate = func(ctx context.Context, _ func() provider.Sandbox) (provider.Sandbox, error) {
				return provider.Sandbox{}, wait(ctx)
			}
		}, connect},
		"start": {func(c *cloud, wait func(context.Context) error) { c.onStart = wait }, connect},
		"undo": {func(c *cloud, wait func(context.Context) error) {
			c.onStart = func(context.Context) error { return failing }
			c.onDestroy = wait
		}, connect},
		"disconnect": {func(c *cloud, wait func(context.Context) error) { c.onDestroy = wait }, func(ctx context.Context, h host) {
			connect(ctx, h)
			disconnect(ctx, h)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				c := newCloud()
				one := hostOf(c, records.NewMemory(), "one")
				var before, after error
				waited := false
				test.waitAt(c, func(ctx context.Context) error {
					if !waited {
						before, waited = fence.Check(ctx), true
						one.store.End()
						after = fence.Check(ctx)
					}
					return after
				})
				test.do(t.Context(), one)
				if !waited || before != nil || !errors.Is(after, records.ErrLost) {
					t.Errorf("waited: %t. The call is told %v, and after the loss %v", waited, before, after)
				}
			})
		})
	}
}

func TestWakingAndSuspendingAreRecordedBeforeTheyAreDone(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCloud()
		one := hostOf(c, records.NewMemory(), "one")
		_, err := one.Connect(t.Context(), request(), nil)
		ok(t, err)
		for _, test := range []struct {
			fails error
			state records.State // afterwards
		}{
			{provider.Errorf(provider.CodeUnsupported, "no suspending here"), records.StateRunning},
			{provider.Errorf(provider.CodeFailed, "quota"), records.StateRunning},
			{provider.Errorf(provider.CodeUnreachable, "the answer was lost"), records.StateSuspended},
			{nil, records.StateSuspended},
		} {
			c.onSuspend = func() error {
				same(t, "while it is suspended", recordOf(t, one).State, records.StateSuspended)
				return test.fails
			}
			_, err = one.Disconnect(t.Context(), "s1", ActionSuspend, nil)
			same(t, "code", provider.CodeOf(err), provider.CodeOf(test.fails))
			same(t, "afterwards", recordOf(t, one).State, test.state)
		}
		c.onAttach = func(context.Context) error {
			same(t, "while it is woken", recordOf(t, one).State, records.StateRunning)
			return nil
		}
		_, err = one.Connect(t.Context(), request(), nil)
		ok(t, err)
	})
}

func TestTheHealthWaitEndsWithTheLease(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCloud()
		one := hostOf(c, records.NewMemory(), "one")
		c.onPing = func(ctx context.Context, _ time.Duration) (provider.PingResult, error) {
			one.store.End()
			return provider.PingResult{}, fence.Check(ctx)
		}
		began := time.Now()
		_, err := one.Connect(t.Context(), request(), nil)
		if !errors.Is(err, records.ErrLost) || time.Since(began) > 5*time.Second {
			t.Errorf("after %s: %v", time.Since(began), err)
		}
	})
}

func failureCleanup(err error) Cleanup {
	var e *Error
	errors.As(err, &e)
	return e.Cleanup
}

func TestWhatAnInterruptedCreateLeftIsDestroyedBeforeANewOne(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCloud()
		c.listLag = time.Second // the sandbox shows only later
		memory := records.NewMemory()
		one, two := hostOf(c, memory, "one"), hostOf(c, memory, "two")
		lease, record, err := one.store.Claim(t.Context(), "s1")
		ok(t, err)
		record.Provider, record.State, record.Attempt = "acme", records.StateCreating, "a1"
		ok(t, one.store.Save(t.Context(), lease, record))
		old := c.put(provider.Sandbox{Session: "s1", Owner: testOwner, Attempt: "a1", State: provider.StateRunning})
		one.store.End()

		result, err := two.Connect(t.Context(), request(), nil)
		ok(t, err)
		if result.SandboxID == old {
			t.Error("it adopted the sandbox of a create whose plugin may still be undoing it")
		}
		same(t, "left", strings.Join(c.left(), " "), result.SandboxID)
	})
}

func TestASandboxRecordedByAnInterruptedConnectIsAdopted(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCloud()
		memory := records.NewMemory()
		one, two := hostOf(c, memory, "one"), hostOf(c, memory, "two")
		lease, record, err := one.store.Claim(t.Context(), "s1")
		ok(t, err)
		id := c.put(provider.Sandbox{Session: "s1", Owner: testOwner, Attempt: "a1", State: provider.StateRunning})
		record.Provider, record.State, record.Attempt, record.SandboxID = "acme", records.StateCreating, "a1", id
		ok(t, one.store.Save(t.Context(), lease, record))
		one.store.End()

		result, err := two.Connect(t.Context(), request(), nil)
		ok(t, err)
		same(t, "sandbox", result.SandboxID, id)
		same(t, "state", recordOf(t, two).State, records.StateRunning)
	})
}

func TestNothingIsMadeThatCannotBeRecorded(t *testing.T) {
	t.Parallel()
	full := &records.UnusableError{Where: "records.db", Problem: "the disk is full", Hint: "make room"}
	for name, spoil := range map[string]func(*faulty){
		"the intent": func(f *faulty) { f.save = func(records.Record) error { return full } },
		"the sandbox": func(f *faulty) {
			f.save = func(r records.Record) error {
				if r.SandboxID != "" {
					return full
				}
				return nil
			}
		},
		"the connection": func(f *faulty) {
			f.release = func(r records.Record) error {
				if r.State == records.StateRunning {
					return full
				}
				return nil
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				c := newCloud()
				f := &faulty{Store: records.NewMemory().Store("one")}
				spoil(f)
				_, err := New(c, "acme", testOwner, []byte("host secret"), f).Connect(t.Context(), request(), nil)
				e := failure(t, err, CodeRecordsUnusable)
				if !strings.Contains(e.Message, "the disk is full") || e.Hint != "make room" {
					t.Errorf("%s (%s)", e.Message, e.Hint)
				}
				nothingLeft(t, c)
				record, err := f.Get(t.Context(), "s1")
				ok(t, err)
				same(t, "state", record.State, records.StateGone)
			})
		})
	}
}

func TestRecordsOutOfReachDoNotEndAClaimBeforeItsTime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCloud()
		store := records.NewMemory().Store("one")
		f := &faulty{Store: store, check: func(records.Record) error { return &records.UnusableError{Problem: "restarting"} }}
		k := New(c, "acme", testOwner, []byte("host secret"), f)
		_, err := k.Connect(t.Context(), request(), nil)
		ok(t, err)
		// The same when its time is up.
		c.onCreate, c.sandboxes = nil, map[string]*provider.Sandbox{}
		c.onAttach = func(context.Context) error { store.End(); return nil }
		_, err = k.Connect(t.Context(), request(), nil)
		failure(t, err, CodeLeaseLost)
		same(t, "creates", c.count("create"), 1)
	})
}

func TestASessionHasOneSandboxOverAllProviders(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c, other := newCloud(), newCloud()
		memory := records.NewMemory()
		h := hostOf(c, memory, "one")
		_, err := h.Connect(t.Context(), request(), nil)
		ok(t, err)
		there := New(other, "umbrella", testOwner, []byte("host secret"), memory.Store("two"))
		_, err = there.Connect(t.Context(), request(), nil)
		e := failure(t, err, CodeAlreadyExists)
		if !strings.Contains(e.Hint, "--provider acme") {
			t.Error(e.Hint)
		}
		_, err = there.Disconnect(t.Context(), "s1", ActionDestroy, nil)
		failure(t, err, CodeAlreadyExists)
		same(t, "calls", other.called(), "")
		_, err = h.Disconnect(t.Context(), "s1", ActionDestroy, nil)
		ok(t, err)
		_, err = there.Connect(t.Context(), request(), nil)
		ok(t, err)
	})
}

func TestAnUndoThatFailedIsFinishedByRecover(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCloud()
		c.onStart = func(context.Context) error { return provider.Errorf(provider.CodeFailed, "no such command") }
		c.onDestroy = func(context.Context) error { return provider.Errorf(provider.CodeUnreachable, "502") }
		h := hostOf(c, records.NewMemory(), "one")
		_, err := h.Connect(t.Context(), request(), nil)
		same(t, "cleanup", failureCleanup(err), CleanupFailed)
		record := recordOf(t, h)
		same(t, "state", record.State, records.StateDestroying)
		same(t, "recorded", record.SandboxID, c.left()[0])
		c.onDestroy = nil
		outcome, id, err := h.Recover(t.Context(), "s1")
		ok(t, err)
		same(t, "outcome", outcome, OutcomeDestroyed)
		same(t, "sandbox", id, record.SandboxID)
		nothingLeft(t, c)
		same(t, "state", recordOf(t, h).State, records.StateGone)
		outcome, _, err = h.Recover(t.Context(), "s1")
		ok(t, err)
		same(t, "outcome once more", outcome, OutcomeNothing)
	})
}

func TestRecoverRecordsASandboxThatWasThereBeforeTheInterruptedAttempt(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCloud()
		memory := records.NewMemory()
		one, two := hostOf(c, memory, "one"), hostOf(c, memory, "two")
		before := c.put(provider.Sandbox{Session: "s1", Owner: testOwner, Attempt: "a0", State: provider.StateRunning})
		lease, record, err := one.store.Claim(t.Context(), "s1")
		ok(t, err)
		record.Provider, record.State, record.Attempt = "acme", records.StateCreating, "a1"
		ok(t, one.store.Save(t.Context(), lease, record))
		outcome, _, err := two.Recover(t.Context(), "s1")
		ok(t, err)
		same(t, "outcome while the host lives", outcome, OutcomeBusy)
		one.store.End()
		outcome, id, err := two.Recover(t.Context(), "s1")
		ok(t, err)
		same(t, "outcome", outcome, OutcomeAdopted)
		same(t, "sandbox", id, before)
		same(t, "state", recordOf(t, two).State, records.StateRunning)
		same(t, "left", strings.Join(c.left(), " "), before)
	})
}

func TestDisconnectEndsASandboxThatTheListingDoesNotShowYet(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCloud()
		c.listLag = 5 * time.Second
		h := hostOf(c, records.NewMemory(), "one")
		result, err := h.Connect(t.Context(), request(), nil)
		ok(t, err)
		id, err := h.Disconnect(t.Context(), "s1", ActionDestroy, nil)
		ok(t, err)
		same(t, "sandbox", id, result.SandboxID)
		nothingLeft(t, c)
		same(t, "state", recordOf(t, h).State, records.StateGone)
	})
}

// interruptedCreate records a create whose host has ended.
func interruptedCreate(t *testing.T, h host, id string) {
	t.Helper()
	lease, record, err := h.store.Claim(t.Context(), "s1")
	ok(t, err)
	record.Provider, record.State, record.Attempt, record.SandboxID = "acme", records.StateCreating, "a1", id
	ok(t, h.store.Save(t.Context(), lease, record))
	h.store.End()
}

func TestDisconnectEndsWhatAnInterruptedCreateLeftThoughTheListingLags(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCloud()
		c.listLag = 2 * time.Second
		memory := records.NewMemory()
		one, two := hostOf(c, memory, "one"), hostOf(c, memory, "two")
		interruptedCreate(t, one, "")
		left := c.put(provider.Sandbox{Session: "s1", Owner: testOwner, Attempt: "a1", State: provider.StateRunning})
		id, err := two.Disconnect(t.Context(), "s1", ActionDestroy, nil)
		ok(t, err)
		same(t, "sandbox", id, left)
		nothingLeft(t, c)
		same(t, "state", recordOf(t, two).State, records.StateGone)
	})
}

func TestASandboxThatTheListingDoesNotShowYetCanBeCheckedAndRenewed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := renewing{newCloud()}
		c.listLag = 5 * time.Second
		h := hostOf(c, records.NewMemory(), "one")
		result, err := h.Connect(t.Context(), request(), nil)
		ok(t, err)
		check, err := h.Check(t.Context(), request())
		ok(t, err)
		same(t, "checked", check.Sandbox.ID, result.SandboxID)
		same(t, "health", check.Ping.Status, provider.PingAlive)
		id, _, err := h.Renew(t.Context(), "s1", time.Hour, nil)
		ok(t, err)
		same(t, "renewed", id, result.SandboxID)
	})
}

func TestOfTwoSandboxesTheRecordedOneIsCheckedAndRenewed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := renewing{newCloud()}
		c.put(provider.Sandbox{Session: "s1", Owner: testOwner, Attempt: "a0", State: provider.StateRunning})
		h := hostOf(c, records.NewMemory(), "one")
		mine := c.put(provider.Sandbox{Session: "s1", Owner: testOwner, Attempt: "a1", State: provider.StateRunning})
		c.put(provider.Sandbox{Session: "s1", Owner: testOwner, Attempt: "a2", State: provider.StateRunning})
		lease, record, err := h.store.Claim(t.Context(), "s1")
		ok(t, err)
		record.Provider, record.State, record.SandboxID = "acme", records.StateRunning, mine
		ok(t, h.store.Release(t.Context(), lease, record))
		check, err := h.Check(t.Context(), request())
		ok(t, err)
		same(t, "checked", check.Sandbox.ID, mine)
		id, _, err := h.Renew(t.Context(), "s1", time.Hour, nil)
		ok(t, err)
		same(t, "renewed", id, mine)
	})
}

func TestWhatWasInterruptedIsNotRenewed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := renewing{newCloud()}
		memory := records.NewMemory()
		one, two := hostOf(c, memory, "one"), hostOf(c, memory, "two")
		interruptedCreate(t, one, c.put(provider.Sandbox{Session: "s1", Owner: testOwner, Attempt: "a1", State: provider.StateRunning}))
		_, _, err := two.Renew(t.Context(), "s1", time.Hour, nil)
		e := failure(t, err, CodeNotFound)
		if !strings.Contains(e.Message, "interrupted") || !strings.Contains(e.Hint, "berth recover") {
			t.Errorf("%s (%s)", e.Message, e.Hint)
		}
		same(t, "state", recordOf(t, two).State, records.StateCreating)
	})
}

func TestAnInterruptedDisconnectIsFinishedByTheNextConnect(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCloud()
		memory := records.NewMemory()
		one, two := hostOf(c, memory, "one"), hostOf(c, memory, "two")
		result, err := one.Connect(t.Context(), request(), nil)
		ok(t, err)
		c.onDestroy = func(context.Context) error {
			one.store.End()
			return provider.Errorf(provider.CodeFailed, "the host ended here")
		}
		_, err = one.Disconnect(t.Context(), "s1", ActionDestroy, nil)
		if err == nil {
			t.Fatal("it disconnected")
		}
		c.onDestroy = nil
		again, err := two.Connect(t.Context(), request(), nil)
		ok(t, err)
		if again.SandboxID == result.SandboxID {
			t.Error("it attached to a sandbox that was to be destroyed")
		}
		same(t, "left", strings.Join(c.left(), " "), again.SandboxID)
	})
}

func TestRenewMovesTheEndAndRecordsTheHold(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := renewing{newCloud()}
		h := hostOf(c, records.NewMemory(), "one")
		_, _, err := h.Renew(t.Context(), "s1", time.Hour, nil)
		failure(t, err, CodeNotFound)
		_, err = h.Connect(t.Context(), request(), nil)
		ok(t, err)
		_, end, err := h.Renew(t.Context(), "s1", 3*time.Hour, nil)
		ok(t, err)
		same(t, "end", end, time.Now().Add(3*time.Hour))
		record := recordOf(t, h)
		same(t, "expiry", record.ExpiresAt, end)
		same(t, "held until", record.HeldUntil, end)
	})
}

// renewing is a cloud that can renew.
type renewing struct{ *cloud }

func (renewing) Renew(_ context.Context, r provider.RenewRequest) (time.Time, error) {
	return time.Now().Add(r.Lifetime), nil
}

func TestARecordFromTheFutureIsNotFresh(t *testing.T) {
	t.Parallel()
	for age, want := range map[time.Duration]bool{0: true, 30 * time.Second: true, -30 * time.Second: true, 2 * time.Minute: false, -3 * time.Hour: false} {
		same(t, age.String(), Fresh(records.Record{UpdatedAt: time.Now().Add(-age)}, time.Minute), want)
	}
}
