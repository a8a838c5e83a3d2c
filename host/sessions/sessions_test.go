package sessions

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/berth-dev/berth/host/connect"
	"github.com/berth-dev/berth/host/fence"
	"github.com/berth-dev/berth/host/records"
	"github.com/berth-dev/berth/internal/fakecloud"
	"github.com/berth-dev/berth/shared/provider"
)

func TestDisconnectEndsOrSuspendsTheSessionsSandbox(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := fakecloud.New()
		k := hostOf(c, records.NewMemory(), "one")
		c.Put(provider.Sandbox{Session: "other", Owner: testOwner, State: provider.StateRunning})
		id := c.Put(provider.Sandbox{Session: "s1", Owner: testOwner, State: provider.StateRunning})
		got, err := k.Disconnect(t.Context(), "s1", ActionSuspend, nil)
		ok(t, err)
		same(t, "suspended", got, id)
		same(t, "state", c.Sandboxes[id].State, provider.StateSuspended)
		_, err = k.Disconnect(t.Context(), "s1", ActionDestroy, nil)
		ok(t, err)
		same(t, "left", strings.Join(c.Left(), " "), "sb-1")
		_, err = k.Disconnect(t.Context(), "s1", ActionDestroy, nil)
		failure(t, err, connect.CodeNotFound)
		c.OnDestroy = func(context.Context) error { return provider.Errorf(provider.CodeDenied, "no") }
		_, err = k.Disconnect(t.Context(), "other", ActionDestroy, nil)
		same(t, "sandbox of the error", failure(t, err, connect.CodeDenied).SandboxID, "sb-1")
	})
}

func TestASuspendThatTheProviderCannotDoChangesNothing(t *testing.T) {
	t.Parallel()
	c := fakecloud.New()
	id := c.Put(provider.Sandbox{Session: "s1", Owner: testOwner, State: provider.StateRunning})
	_, err := hostOf(struct {
		provider.Provider
		provider.Lister
	}{c, c}, records.NewMemory(), "one").Disconnect(t.Context(), "s1", ActionSuspend, nil)
	failure(t, err, connect.CodeUnsupported)
	same(t, "left", strings.Join(c.Left(), " "), id)
}

func TestCheckAsksOnceAndWakesNothing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := fakecloud.New()
		k := hostOf(c, records.NewMemory(), "one")
		_, err := k.Check(t.Context(), request())
		failure(t, err, connect.CodeNotFound)

		id := c.Put(provider.Sandbox{Session: "s1", Owner: testOwner, State: provider.StateSuspended})
		check, err := k.Check(t.Context(), request())
		ok(t, err)
		same(t, "state", check.Sandbox.State, provider.StateSuspended)
		same(t, "nobody was asked", check.Ping.Status, "")
		same(t, "calls", c.Called(), "list list")

		c.Sandboxes[id].State, c.Running = provider.StateRunning, true
		check, err = k.Check(t.Context(), request())
		ok(t, err)
		same(t, "ping", check.Ping.Status, provider.PingAlive)
		same(t, "starts", c.Count("start"), 0)
	})
}

func TestCheckTellsASandboxThatIsGoneFromNone(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		record  records.Record
		age     time.Duration
		spoil   func(*fakecloud.Cloud)
		sandbox string
		message string
	}{
		"never one": {records.Record{State: records.StateGone}, 0, nil, "", `session "s1" has no sandbox on provider acme`},
		"one that ended": {
			records.Record{Provider: "acme", State: records.StateGone, SandboxID: "sb-9"}, 0, nil, "", `session "s1" has no sandbox on provider acme`,
		},
		"not made yet": {
			records.Record{Provider: "acme", State: records.StateCreating, Attempt: "a1"}, 0, nil, "", `session "s1" has no sandbox on provider acme`,
		},
		"gone for long": {
			records.Record{Provider: "acme", State: records.StateRunning, SandboxID: "sb-9"}, time.Hour, nil, "sb-9",
			`the sandbox sb-9 of session "s1" is gone from provider acme`,
		},
		"gone just now, when listings lag": {
			records.Record{Provider: "acme", State: records.StateRunning, SandboxID: "sb-9"}, 0, nil, "sb-9",
			`the sandbox sb-9 of session "s1" is gone from provider acme`,
		},
		"gone while it is asked": {
			records.Record{Provider: "acme", State: records.StateRunning, SandboxID: "sb-1"}, 0, func(c *fakecloud.Cloud) {
				c.Put(provider.Sandbox{Session: "s1", Owner: testOwner, State: provider.StateRunning})
				c.OnPing = func(context.Context, time.Duration) (provider.PingResult, error) {
					return provider.PingResult{}, provider.Errorf(provider.CodeNotFound, "404")
				}
			}, "sb-1", "404",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				c := fakecloud.New()
				if test.spoil != nil {
					test.spoil(c)
				}
				h := hostOf(c, records.NewMemory(), "one")
				write(t, h, test.record)
				time.Sleep(test.age)
				_, err := h.Check(t.Context(), request())
				e := failure(t, err, connect.CodeNotFound)
				same(t, "sandbox", e.SandboxID, test.sandbox)
				same(t, "message", e.Message, test.message)
			})
		})
	}
}

func TestAListingThatHangsEnds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := fakecloud.New()
		c.OnList = func(ctx context.Context) error {
			<-ctx.Done()
			return ctx.Err()
		}
		began := time.Now()
		h := hostOf(c, records.NewMemory(), "one")
		_, err := h.List(t.Context())
		failure(t, err, connect.CodeDeadline)
		same(t, "time", time.Since(began), 30*time.Second)
		began = time.Now()
		_, err = h.Survey(t.Context())
		failure(t, err, connect.CodeDeadline)
		same(t, "time of a survey", time.Since(began), 2*time.Minute)
	})
}

func TestListShowsThisInstallationsSandboxesAndWhatThereIsBesideAnError(t *testing.T) {
	t.Parallel()
	for _, failure := range []error{nil, provider.Errorf(provider.CodeUnreachable, "the second page is missing")} {
		c := fakecloud.New()
		id := c.Put(provider.Sandbox{Session: "s1", Owner: testOwner, State: provider.StateRunning})
		h := hostOf(partly{c, failure}, records.NewMemory(), "one")
		for name, list := range map[string]func(context.Context) ([]provider.Sandbox, error){"list": h.List, "survey": h.Survey} {
			sandboxes, err := list(t.Context())
			if len(sandboxes) != 1 || sandboxes[0].ID != id || (err != nil) != (failure != nil) {
				t.Errorf("%s: %v, %v", name, sandboxes, err)
			}
		}
	}
}

// partly is a cloud whose listings come with an error.
type partly struct {
	*fakecloud.Cloud
	err error
}

func (p partly) List(ctx context.Context, r provider.ListRequest) ([]provider.Sandbox, error) {
	r.Owner = testOwner
	sandboxes, _ := p.Cloud.List(ctx, r)
	return sandboxes, p.err
}

func TestWorkWaitsForTheHostThatHasTheSession(t *testing.T) {
	t.Parallel()
	for _, tell := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			c, memory := fakecloud.New(), records.NewMemory()
			h := hostOf(c, memory, "one")
			connected(t, h)
			other := memory.Store("two")
			taken, record, err := other.Take(t.Context(), "s1")
			ok(t, err)
			var told string
			waiting := func(holder string) { told = holder }
			want := "two"
			if !tell {
				waiting, want = nil, ""
			}
			done := make(chan error)
			go func() {
				_, err := h.Disconnect(t.Context(), "s1", ActionDestroy, waiting)
				done <- err
			}()
			synctest.Wait() // until it waits
			ok(t, other.Release(t.Context(), taken, record))
			ok(t, <-done)
			same(t, "told", told, want)
			nothingLeft(t, c)
		})
	}
}

func TestARecordedSandboxIsFoundWithoutAListing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := fakecloud.New()
		c.Running = true
		h := hostOf(struct{ provider.Provider }{c}, records.NewMemory(), "one")
		id := c.Put(provider.Sandbox{Session: "s1", Owner: testOwner, State: provider.StateRunning})
		write(t, h, records.Record{Provider: "acme", State: records.StateRunning, SandboxID: id})
		time.Sleep(time.Hour)
		check, err := h.Check(t.Context(), request())
		ok(t, err)
		same(t, "checked", check.Sandbox.ID, id)
	})
}

func TestDisconnectDestroysOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := fakecloud.New()
		h := hostOf(c, records.NewMemory(), "one")
		id := connected(t, h)
		_, err := h.Disconnect(t.Context(), "s1", ActionDestroy, nil)
		ok(t, err)
		same(t, "destroyed", c.Count("destroy:"+id), 1)
	})
}

func TestARenewalThatFailsChangesTheRecordOnlyIfTheSandboxIsGone(t *testing.T) {
	t.Parallel()
	for code, want := range map[provider.Code]records.State{
		provider.CodeNotFound: records.StateGone, provider.CodeUnreachable: records.StateRunning, provider.CodeFailed: records.StateRunning,
	} {
		synctest.Test(t, func(t *testing.T) {
			c := &prolonging{Cloud: fakecloud.New(), onRenew: func(context.Context) error { return provider.Errorf(code, "no") }}
			h := hostOf(c, records.NewMemory(), "one")
			connected(t, h)
			_, _, err := h.Renew(t.Context(), "s1", time.Hour, nil)
			same(t, "code", provider.CodeOf(err), code)
			same(t, "after "+string(code), recordOf(t, h).State, want)
		})
	}
}

func TestWakingAndSuspendingAreRecordedBeforeTheyAreDone(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := fakecloud.New()
		one := hostOf(c, records.NewMemory(), "one")
		connected(t, one)
		for _, test := range []struct {
			fails error
			state records.State // afterwards
		}{
			{provider.Errorf(provider.CodeUnsupported, "no suspending here"), records.StateRunning},
			{provider.Errorf(provider.CodeFailed, "quota"), records.StateRunning},
			{provider.Errorf(provider.CodeUnreachable, "the answer was lost"), records.StateSuspended},
			{nil, records.StateSuspended},
		} {
			c.OnSuspend = func() error {
				same(t, "while it is suspended", recordOf(t, one).State, records.StateSuspended)
				return test.fails
			}
			_, err := one.Disconnect(t.Context(), "s1", ActionSuspend, nil)
			same(t, "code", provider.CodeOf(err), provider.CodeOf(test.fails))
			same(t, "afterwards", recordOf(t, one).State, test.state)
		}
		c.OnAttach = func(context.Context) error {
			same(t, "while it is woken", recordOf(t, one).State, records.StateRunning)
			return nil
		}
		connected(t, one)
	})
}

func TestASessionHasOneSandboxOverAllProviders(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c, other := fakecloud.New(), fakecloud.New()
		memory := records.NewMemory()
		h := hostOf(c, memory, "one")
		connected(t, h)
		there := hostOn("umbrella", other, memory, "two")
		_, err := there.Connect(t.Context(), request(), nil)
		e := failure(t, err, connect.CodeAlreadyExists)
		same(t, "the other provider", e.OtherProvider, "acme")
		_, err = there.Disconnect(t.Context(), "s1", ActionDestroy, nil)
		failure(t, err, connect.CodeAlreadyExists)
		same(t, "calls", other.Called(), "")
		_, err = h.Disconnect(t.Context(), "s1", ActionDestroy, nil)
		ok(t, err)
		_, err = there.Connect(t.Context(), request(), nil)
		ok(t, err)
	})
}

func TestAnUndoThatFailedIsFinishedByRecover(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := fakecloud.New()
		c.OnStart = func(context.Context) error { return provider.Errorf(provider.CodeFailed, "no such command") }
		c.OnDestroy = func(context.Context) error { return provider.Errorf(provider.CodeUnreachable, "502") }
		h := hostOf(c, records.NewMemory(), "one")
		_, err := h.Connect(t.Context(), request(), nil)
		same(t, "cleanup", failureCleanup(err), connect.CleanupFailed)
		record := recordOf(t, h)
		same(t, "state", record.State, records.StateDestroying)
		same(t, "recorded", record.SandboxID, c.Left()[0])
		c.OnDestroy = nil
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
		c := fakecloud.New()
		memory := records.NewMemory()
		one, two := hostOf(c, memory, "one"), hostOf(c, memory, "two")
		before := c.Put(provider.Sandbox{Session: "s1", Owner: testOwner, Attempt: "a0", State: provider.StateRunning})
		lease, record, err := one.store.Take(t.Context(), "s1")
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
		same(t, "left", strings.Join(c.Left(), " "), before)
	})
}

func TestDisconnectEndsASandboxThatTheListingDoesNotShowYet(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := fakecloud.New()
		c.ListLag = 5 * time.Second
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
	lease, record, err := h.store.Take(t.Context(), "s1")
	ok(t, err)
	record.Provider, record.State, record.Attempt, record.SandboxID = "acme", records.StateCreating, "a1", id
	ok(t, h.store.Save(t.Context(), lease, record))
	h.store.End()
}

func TestDisconnectEndsWhatAnInterruptedCreateLeftThoughTheListingLags(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := fakecloud.New()
		c.ListLag = 2 * time.Second
		memory := records.NewMemory()
		one, two := hostOf(c, memory, "one"), hostOf(c, memory, "two")
		interruptedCreate(t, one, "")
		left := c.Put(provider.Sandbox{Session: "s1", Owner: testOwner, Attempt: "a1", State: provider.StateRunning})
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
		c := renewing{fakecloud.New()}
		c.ListLag = 5 * time.Second
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
		c := renewing{fakecloud.New()}
		c.Put(provider.Sandbox{Session: "s1", Owner: testOwner, Attempt: "a0", State: provider.StateRunning})
		h := hostOf(c, records.NewMemory(), "one")
		mine := c.Put(provider.Sandbox{Session: "s1", Owner: testOwner, Attempt: "a1", State: provider.StateRunning})
		c.Put(provider.Sandbox{Session: "s1", Owner: testOwner, Attempt: "a2", State: provider.StateRunning})
		lease, record, err := h.store.Take(t.Context(), "s1")
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
		c := renewing{fakecloud.New()}
		memory := records.NewMemory()
		one, two := hostOf(c, memory, "one"), hostOf(c, memory, "two")
		interruptedCreate(t, one, c.Put(provider.Sandbox{Session: "s1", Owner: testOwner, Attempt: "a1", State: provider.StateRunning}))
		_, _, err := two.Renew(t.Context(), "s1", time.Hour, nil)
		e := failure(t, err, connect.CodeNotFound)
		same(t, "reason", e.Reason, connect.ReasonInterrupted)
		same(t, "state", recordOf(t, two).State, records.StateCreating)
	})
}

func TestAnInterruptedDisconnectIsFinishedByTheNextConnect(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := fakecloud.New()
		memory := records.NewMemory()
		one, two := hostOf(c, memory, "one"), hostOf(c, memory, "two")
		id := connected(t, one)
		c.OnDestroy = func(context.Context) error {
			one.store.End()
			return provider.Errorf(provider.CodeFailed, "the host ended here")
		}
		_, err := one.Disconnect(t.Context(), "s1", ActionDestroy, nil)
		if err == nil {
			t.Fatal("it disconnected")
		}
		c.OnDestroy = nil
		again, err := two.Connect(t.Context(), request(), nil)
		ok(t, err)
		if again.SandboxID == id {
			t.Error("it attached to a sandbox that was to be destroyed")
		}
		same(t, "left", strings.Join(c.Left(), " "), again.SandboxID)
	})
}

func TestRenewMovesTheEndAndRecordsIt(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := renewing{fakecloud.New()}
		h := hostOf(c, records.NewMemory(), "one")
		_, _, err := h.Renew(t.Context(), "s1", time.Hour, nil)
		failure(t, err, connect.CodeNotFound)
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

func TestRenewWakesNothingAndTakesUpWhatIsThere(t *testing.T) {
	t.Parallel()
	for before, want := range map[records.State]records.State{
		records.StateSuspended: records.StateSuspended, records.StateRunning: records.StateRunning, records.StateGone: records.StateRunning,
	} {
		synctest.Test(t, func(t *testing.T) {
			c := renewing{fakecloud.New()}
			h := hostOf(c, records.NewMemory(), "one")
			id := c.Put(provider.Sandbox{Session: "s1", Owner: testOwner, State: provider.StateRunning})
			write(t, h, records.Record{Provider: "acme", State: before, SandboxID: id})
			_, _, err := h.Renew(t.Context(), "s1", time.Hour, nil)
			ok(t, err)
			same(t, "after "+string(before), recordOf(t, h).State, want)
		})
	}
}

// renewing is a cloud that can renew.
type renewing struct{ *fakecloud.Cloud }

func (renewing) Renew(_ context.Context, r provider.RenewRequest) (time.Time, error) {
	return time.Now().Add(r.Lifetime), nil
}

func TestADisconnectThatWaitsIsNotMadeOnceTheLeaseIsLost(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := fakecloud.New()
		h := hostOf(c, records.NewMemory(), "one")
		connected(t, h)
		c.OnDestroy = func(ctx context.Context) error {
			ok(t, fence.Check(ctx))
			h.store.End()
			return fence.Check(ctx)
		}
		_, err := h.Disconnect(t.Context(), "s1", ActionDestroy, nil)
		failure(t, err, connect.CodeLeaseLost)
		same(t, "left", len(c.Left()), 1)
	})
}

// owe makes an earlier attempt of the session owe an undo.
func owe(t *testing.T, store *records.MemoryStore, attempt records.Attempt) {
	t.Helper()
	taken, record, err := store.Take(t.Context(), "s1")
	ok(t, err)
	ok(t, store.SaveAttempt(t.Context(), taken, attempt))
	ok(t, store.Release(t.Context(), taken, record))
}

func TestWhatAnEarlierAttemptOwesIsFinished(t *testing.T) {
	t.Parallel()
	for name, finish := range map[string]func(*testing.T, host, records.Attempt) string{
		"by disconnect": func(t *testing.T, h host, _ records.Attempt) string {
			id, err := h.Disconnect(t.Context(), "s1", ActionDestroy, nil)
			ok(t, err)
			return id
		},
		"by repay": func(t *testing.T, h host, owing records.Attempt) string {
			outcome, id, err := h.Repay(t.Context(), owing)
			ok(t, err)
			same(t, "outcome", outcome, OutcomeDestroyed)
			return id
		},
	} {
		for _, known := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, sandbox known: %v", name, known), func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					c := fakecloud.New()
					h := hostOf(c, records.NewMemory(), "one")
					id := c.Put(provider.Sandbox{Session: "s1", Owner: testOwner, Attempt: "a1", State: provider.StateRunning})
					owing := records.Attempt{ID: "a1", Session: "s1", Provider: "acme", State: records.StateCreating}
					if known {
						owing.SandboxID = id
					}
					owe(t, h.store, owing)
					same(t, "sandbox", finish(t, h, owing), id)
					nothingLeft(t, c)
					owed, err := h.store.Owed(t.Context(), "")
					ok(t, err)
					same(t, "owed", len(owed), 0)
					outcome, _, err := h.Repay(t.Context(), owing)
					ok(t, err)
					same(t, "once more", outcome, OutcomeNothing)
				})
			})
		}
	}
}

func TestWhatTheSessionHasByNowIsNotRepaid(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := fakecloud.New()
		h := hostOf(c, records.NewMemory(), "one")
		id := c.Put(provider.Sandbox{Session: "s1", Owner: testOwner, Attempt: "a1", State: provider.StateRunning})
		// A record that names the sandbox and not the attempt: the plugin does not say whose it is.
		taken, record, err := h.store.Take(t.Context(), "s1")
		ok(t, err)
		record.Provider, record.SandboxID, record.State = "acme", id, records.StateRunning
		ok(t, h.store.Release(t.Context(), taken, record))
		owing := records.Attempt{ID: "a1", Session: "s1", Provider: "acme", State: records.StateCreating}
		owe(t, h.store, owing)
		outcome, _, err := h.Repay(t.Context(), owing)
		ok(t, err)
		same(t, "outcome", outcome, OutcomeNothing)
		same(t, "left", strings.Join(c.Left(), " "), id)
		owed, err := h.store.Owed(t.Context(), "")
		ok(t, err)
		same(t, "owed", len(owed), 0)
	})
}

func TestARepaymentThatFailsStaysOwed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := fakecloud.New()
		h := hostOf(c, records.NewMemory(), "one")
		id := c.Put(provider.Sandbox{Session: "s1", Owner: testOwner, Attempt: "a1", State: provider.StateRunning})
		owing := records.Attempt{ID: "a1", Session: "s1", Provider: "acme", State: records.StateCreating}
		owe(t, h.store, owing)
		c.OnDestroy = func(context.Context) error { return provider.Errorf(provider.CodeDenied, "403") }
		_, _, err := h.Repay(t.Context(), owing)
		failure(t, err, connect.CodeDenied)
		_, err = h.Connect(t.Context(), request(), nil)
		failure(t, err, connect.CodeDenied)
		owed, err := h.store.Owed(t.Context(), "s1")
		ok(t, err)
		if len(owed) != 1 || owed[0].SandboxID != id || owed[0].State != records.StateDestroying {
			t.Errorf("owed: %+v", owed)
		}
	})
}

// prolonging is a cloud whose sandboxes can be renewed.
type prolonging struct {
	*fakecloud.Cloud
	onRenew func(context.Context) error
}

func (c *prolonging) Renew(ctx context.Context, r provider.RenewRequest) (time.Time, error) {
	if c.onRenew != nil {
		if err := c.onRenew(ctx); err != nil {
			return time.Time{}, err
		}
	}
	return time.Now().Add(r.Lifetime), nil
}

// spoilt is a store that is out of reach for as long as err is set.
type spoilt struct {
	records.Store
	err atomic.Pointer[error]
}

func (s *spoilt) Take(ctx context.Context, session string) (records.Lease, records.Record, error) {
	if err := s.err.Load(); err != nil {
		return records.Lease{}, records.Record{}, *err
	}
	return s.Store.Take(ctx, session)
}

func TestKeepAliveOutlastsWhatPassesWithinAThirdOfTheLifetime(t *testing.T) {
	t.Parallel()
	const lifetime = 30 * time.Minute
	var recordsOut error = &records.UnusableError{Where: "records.db", Problem: "the server does not answer", Hint: "wait"}
	for name, test := range map[string]struct {
		spoil func(*prolonging, *spoilt)
		mend  func(*prolonging, *spoilt)
		code  connect.Code
	}{
		"records out of reach": {
			func(_ *prolonging, s *spoilt) { s.err.Store(&recordsOut) }, func(_ *prolonging, s *spoilt) { s.err.Store(nil) },
			connect.CodeRecordsUnusable,
		},
		"a provider out of reach": {
			func(c *prolonging, _ *spoilt) {
				c.onRenew = func(context.Context) error { return provider.Errorf(provider.CodeUnreachable, "502") }
			},
			func(c *prolonging, _ *spoilt) { c.onRenew = nil }, connect.CodeUnreachable,
		},
		"a provider that fails": {
			func(c *prolonging, _ *spoilt) {
				c.onRenew = func(context.Context) error { return provider.Errorf(provider.CodeInternal, "500") }
			},
			func(c *prolonging, _ *spoilt) { c.onRenew = nil }, connect.CodeInternal,
		},
		"a provider that hangs": {
			func(c *prolonging, _ *spoilt) {
				c.onRenew = func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
			},
			func(c *prolonging, _ *spoilt) { c.onRenew = nil }, connect.CodeDeadline,
		},
	} {
		for _, passes := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, passes: %v", name, passes), func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					c := &prolonging{Cloud: fakecloud.New()}
					store := &spoilt{Store: records.NewMemory().Store("one")}
					connector := connect.New(c, "acme", testOwner, []byte("host secret"), store)
					connected(t, connector)
					ctx, stop := context.WithCancel(t.Context())
					began := time.Now()
					var failures []Renewal
					var renewed []time.Duration
					err := New(connector).KeepAlive(ctx, "s1", lifetime, nil, func(r Renewal) {
						if r.Err != nil {
							failures = append(failures, r)
							if passes && time.Since(began) > lifetime/3+lifetime/4 {
								test.mend(c, store)
							}
							return
						}
						renewed = append(renewed, time.Since(began))
						switch len(renewed) {
						case 1:
							test.spoil(c, store)
						case 3:
							stop()
						}
					})
					for _, failure := range failures {
						same(t, "failure", failure.Err.Code, test.code)
						same(t, "given up after", failure.GiveUp.Sub(began), 2*lifetime/3)
					}
					if len(failures) < 3 {
						t.Errorf("it was told %d failures", len(failures))
					}
					if !passes {
						failure(t, err, test.code)
						if after := time.Since(began); after < 2*lifetime/3-time.Minute || after > 2*lifetime/3+time.Minute || len(renewed) != 1 {
							t.Errorf("it ended after %s, with %v", after, renewed)
						}
						return
					}
					if !errors.Is(err, context.Canceled) || len(renewed) != 3 || renewed[1] > 2*lifetime/3 ||
						renewed[2] != renewed[1]+lifetime/3 {
						t.Errorf("%v: renewed after %v", err, renewed)
					}
				})
			})
		}
	}
}

func TestKeepAliveRenewsThreeTimesInWhatTheProviderGrants(t *testing.T) {
	t.Parallel()
	for granted, pause := range map[time.Duration]time.Duration{
		time.Hour: 20 * time.Minute, 2 * time.Hour: 20 * time.Minute, 15 * time.Minute: 5 * time.Minute, 2 * time.Second: time.Second,
	} {
		synctest.Test(t, func(t *testing.T) {
			c := &granting{fakecloud.New(), granted}
			connector := connect.New(c, "acme", testOwner, []byte("host secret"), records.NewMemory().Store("one"))
			connected(t, connector)
			ctx, stop := context.WithCancel(t.Context())
			began, times := time.Now(), 0
			err := New(connector).KeepAlive(ctx, "s1", time.Hour, nil, func(r Renewal) {
				same(t, "time of a renewal", time.Since(began), time.Duration(times)*pause)
				same(t, "end", r.End, time.Now().Add(granted))
				if times++; times == 3 {
					stop()
				}
			})
			if !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		})
	}
}

// granting is a cloud that grants each renewal the same time.
type granting struct {
	*fakecloud.Cloud
	granted time.Duration
}

func (c *granting) Renew(context.Context, provider.RenewRequest) (time.Time, error) {
	return time.Now().Add(c.granted), nil
}

// TestKeepAliveTriesNoMoreWhenItsPatienceIsOver: a try that would begin as the time ends is none.
func TestKeepAliveTriesNoMoreWhenItsPatienceIsOver(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := &prolonging{Cloud: fakecloud.New()}
		connector := connect.New(c, "acme", testOwner, []byte("host secret"), records.NewMemory().Store("one"))
		connected(t, connector)
		// The pauses are 0.5, 1, 2, 4, 8 and 10 s, and the last one would end with the third of the lifetime.
		const third = 25500 * time.Millisecond
		var failed time.Time
		err := New(connector).KeepAlive(t.Context(), "s1", 3*third, nil, func(r Renewal) {
			c.onRenew = func(context.Context) error { return provider.Errorf(provider.CodeUnreachable, "502") }
			if r.Err != nil {
				failed = time.Now()
				same(t, "given up after", r.GiveUp.Sub(failed) >= 10*time.Second, true)
			}
		})
		failure(t, err, connect.CodeUnreachable)
		same(t, "end of the last try", time.Since(failed), 0)
	})
}

func TestKeepAliveEndsAtOnceWhenWaitingChangesNothing(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		first, later error
		code         connect.Code
	}{
		"the first renewal fails": {provider.Errorf(provider.CodeUnreachable, "502"), nil, connect.CodeUnreachable},
		"the sandbox is gone":     {nil, provider.Errorf(provider.CodeNotFound, "404"), connect.CodeNotFound},
		"it may not be renewed":   {nil, provider.Errorf(provider.CodeDenied, "403"), connect.CodeDenied},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				c := &prolonging{Cloud: fakecloud.New()}
				connector := connect.New(c, "acme", testOwner, []byte("host secret"), records.NewMemory().Store("one"))
				connected(t, connector)
				answers := []error{test.first, test.later}
				c.onRenew = func(context.Context) error {
					answer := answers[0]
					answers = answers[1:]
					return answer
				}
				err := New(connector).KeepAlive(t.Context(), "s1", time.Hour, nil, func(r Renewal) {
					if r.Err != nil {
						t.Errorf("it goes on after %v", r.Err)
					}
				})
				failure(t, err, test.code)
			})
		})
	}
}

func TestWorkOnASessionTellsItsKeyFirst(t *testing.T) {
	t.Parallel()
	for name, work := range map[string]func(*testing.T, host){
		"disconnect": func(t *testing.T, h host) {
			_, err := h.Disconnect(t.Context(), "s1", ActionDestroy, nil)
			ok(t, err)
		},
		"recover": func(t *testing.T, h host) {
			_, _, err := h.Recover(t.Context(), "s1")
			ok(t, err)
		},
		"check": func(t *testing.T, h host) {
			_, err := h.Check(t.Context(), request())
			ok(t, err)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				c, memory := fakecloud.New(), records.NewMemory()
				result, err := hostOf(c, memory, "one").Connect(t.Context(), request(), nil)
				ok(t, err)
				var told []string
				other := hostOf(c, memory, "two")
				other.TellKeys(func(key string) { told = append(told, key) })
				work(t, other)
				if key := result.Endpoint.Headers["X-Key"]; len(told) == 0 || told[0] != key {
					t.Errorf("the key is %s, and told was %v", key, told)
				}
			})
		})
	}
}
