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
	"github.com/berth-dev/berth/internal/fakecloud"
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
		c := fakecloud.New()
		h := hostOf(c, records.NewMemory(), "one")
		var during records.Record
		c.OnCreate = func(_ context.Context, made func() provider.Sandbox) (provider.Sandbox, error) {
			during = recordOf(t, h)
			return made(), nil
		}
		var starting records.Record
		c.OnStart = func(context.Context) error { starting = recordOf(t, h); return nil }
		result, err := h.Connect(t.Context(), request(), nil)
		ok(t, err)
		same(t, "state before the create", during.State, records.StateCreating)
		same(t, "provider", during.Provider, "acme")
		same(t, "holder", during.Holder, "one")
		if during.Attempt == "" || during.SandboxID != "" || during.Generation == "" {
			t.Errorf("before the create: %+v", during)
		}
		same(t, "sandbox before the start", starting.SandboxID, result.SandboxID)
		same(t, "state before the start", starting.State, records.StateCreating)
		after := recordOf(t, h)
		same(t, "state after", after.State, records.StateRunning)
		same(t, "sandbox after", after.SandboxID, result.SandboxID)
		same(t, "attempt", after.Attempt, c.Find("s1", testOwner).Attempt)
		same(t, "holder after", after.Holder, "")
	})
}

func TestASecondHostWaitsAndGetsTheSameSandbox(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := fakecloud.New()
		c.BootTime = 20 * time.Second
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
		same(t, "creates", c.Count("create"), 1)
		if len(said) != 1 || !strings.Contains(said[0], "one is working on this session") {
			t.Errorf("progress: %q", said)
		}
	})
}

func TestAConnectThatWaitsInVainNamesTheHostAtWork(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := fakecloud.New()
		memory := records.NewMemory()
		one, two := hostOf(c, memory, "one"), hostOf(c, memory, "two")
		_, _, err := one.store.Take(t.Context(), "s1")
		ok(t, err)
		req := request()
		req.Limits.Total = time.Minute
		_, err = two.Connect(t.Context(), req, nil)
		e := failure(t, err, CodeDeadline)
		if !strings.Contains(e.Message, "waiting for one") {
			t.Error(e.Message)
		}
		same(t, "calls", c.Called(), "")
	})
}

func TestAHostThatLostItsLeaseChangesNothingAnyMore(t *testing.T) {
	t.Parallel()
	for name, loseAt := range map[string]func(*fakecloud.Cloud, func()){
		"while creating": func(c *fakecloud.Cloud, lose func()) {
			c.OnCreate = func(_ context.Context, made func() provider.Sandbox) (provider.Sandbox, error) {
				lose()
				return made(), nil
			}
		},
		"while a create fails": func(c *fakecloud.Cloud, lose func()) {
			c.OnCreate = func(_ context.Context, made func() provider.Sandbox) (provider.Sandbox, error) {
				lose()
				made()
				return provider.Sandbox{}, provider.Errorf(provider.CodeUnreachable, "connection reset")
			}
		},
		"while attaching": func(c *fakecloud.Cloud, lose func()) {
			c.OnAttach = func(context.Context) error { lose(); return nil }
		},
		"while starting a server that fails": func(c *fakecloud.Cloud, lose func()) {
			c.OnStart = func(context.Context) error {
				lose()
				return provider.Errorf(provider.CodeFailed, "no such command")
			}
		},
		"during the health wait": func(c *fakecloud.Cloud, lose func()) {
			c.OnPing = func(context.Context, time.Duration) (provider.PingResult, error) {
				lose()
				return provider.PingResult{Status: provider.PingAlive}, nil
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				c := fakecloud.New()
				memory := records.NewMemory()
				one, two := hostOf(c, memory, "one"), hostOf(c, memory, "two")
				var atLoss []string
				loseAt(c, func() { one.store.End(); atLoss = strings.Fields(c.Called()) })
				_, err := one.Connect(t.Context(), request(), nil)
				if !errors.Is(err, records.ErrLost) && failureCleanup(err) != CleanupPending {
					t.Errorf("got %v, cleanup %s", err, failureCleanup(err))
				}
				for _, call := range strings.Fields(c.Called())[len(atLoss):] {
					if call != "list" && call != "ping" {
						t.Errorf("after it lost its lease it called %s", call)
					}
				}
				c.OnCreate, c.OnAttach, c.OnStart, c.OnPing = nil, nil, nil, nil
				result, err := two.Connect(t.Context(), request(), nil)
				ok(t, err)
				same(t, "left", strings.Join(c.Left(), " "), result.SandboxID)
				same(t, "recorded", recordOf(t, two).SandboxID, result.SandboxID)
			})
		})
	}
}

func TestACallThatWaitsIsNotMadeOnceTheLeaseIsLost(t *testing.T) {
	t.Parallel()
	failing := provider.Errorf(provider.CodeFailed, "no such command")
	for name, waitAt := range map[string]func(*fakecloud.Cloud, func(context.Context) error){
		"attach": func(c *fakecloud.Cloud, wait func(context.Context) error) { c.OnAttach = wait },
		"create": func(c *fakecloud.Cloud, wait func(context.Context) error) {
			c.OnCreate = func(ctx context.Context, _ func() provider.Sandbox) (provider.Sandbox, error) {
				return provider.Sandbox{}, wait(ctx)
			}
		},
		"start": func(c *fakecloud.Cloud, wait func(context.Context) error) { c.OnStart = wait },
		"undo": func(c *fakecloud.Cloud, wait func(context.Context) error) {
			c.OnStart = func(context.Context) error { return failing }
			c.OnDestroy = wait
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				c := fakecloud.New()
				one := hostOf(c, records.NewMemory(), "one")
				var before, after error
				waited := false
				waitAt(c, func(ctx context.Context) error {
					if !waited {
						before, waited = fence.Check(ctx), true
						one.store.End()
						after = fence.Check(ctx)
					}
					return after
				})
				_, _ = one.Connect(t.Context(), request(), nil)
				if !waited || before != nil || !errors.Is(after, records.ErrLost) {
					t.Errorf("waited: %t. The call is told %v, and after the loss %v", waited, before, after)
				}
			})
		})
	}
}

func TestTheHealthWaitEndsWithTheLease(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := fakecloud.New()
		one := hostOf(c, records.NewMemory(), "one")
		c.OnPing = func(ctx context.Context, _ time.Duration) (provider.PingResult, error) {
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
		c := fakecloud.New()
		c.ListLag = time.Second // the sandbox shows only later
		memory := records.NewMemory()
		one, two := hostOf(c, memory, "one"), hostOf(c, memory, "two")
		lease, record, err := one.store.Take(t.Context(), "s1")
		ok(t, err)
		record.Provider, record.State, record.Attempt = "acme", records.StateCreating, "a1"
		ok(t, one.store.Save(t.Context(), lease, record))
		old := c.Put(provider.Sandbox{Session: "s1", Owner: testOwner, Attempt: "a1", State: provider.StateRunning})
		one.store.End()

		result, err := two.Connect(t.Context(), request(), nil)
		ok(t, err)
		if result.SandboxID == old {
			t.Error("it adopted the sandbox of a create whose plugin may still be undoing it")
		}
		same(t, "left", strings.Join(c.Left(), " "), result.SandboxID)
	})
}

func TestASandboxRecordedByAnInterruptedConnectIsAdopted(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := fakecloud.New()
		memory := records.NewMemory()
		one, two := hostOf(c, memory, "one"), hostOf(c, memory, "two")
		lease, record, err := one.store.Take(t.Context(), "s1")
		ok(t, err)
		id := c.Put(provider.Sandbox{Session: "s1", Owner: testOwner, Attempt: "a1", State: provider.StateRunning})
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
				c := fakecloud.New()
				f := &faulty{Store: records.NewMemory().Store("one")}
				spoil(f)
				_, err := New(c, "acme", testOwner, []byte("host secret"), f).Connect(t.Context(), request(), nil)
				e := failure(t, err, CodeRecordsUnusable)
				if !strings.Contains(e.Message, "the disk is full") || !errors.Is(err, full) {
					t.Errorf("%s (%v)", e.Message, e.Cause)
				}
				nothingLeft(t, c)
				record, err := f.Get(t.Context(), "s1")
				ok(t, err)
				same(t, "state", record.State, records.StateGone)
			})
		})
	}
}

func TestRecordsOutOfReachDoNotEndALeaseBeforeItsTime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := fakecloud.New()
		store := records.NewMemory().Store("one")
		f := &faulty{Store: store, check: func(records.Record) error { return &records.UnusableError{Problem: "restarting"} }}
		k := New(c, "acme", testOwner, []byte("host secret"), f)
		_, err := k.Connect(t.Context(), request(), nil)
		ok(t, err)
		// The same when its time is up.
		c.OnCreate, c.Sandboxes = nil, map[string]*provider.Sandbox{}
		c.OnAttach = func(context.Context) error { store.End(); return nil }
		_, err = k.Connect(t.Context(), request(), nil)
		failure(t, err, CodeLeaseLost)
		same(t, "creates", c.Count("create"), 1)
	})
}

func TestAnUndoThatIsOwedOnAnotherProviderIsNeverOverwritten(t *testing.T) {
	t.Parallel()
	for name, interrupt := range map[string]func(*testing.T, *fakecloud.Cloud, *records.Memory) records.Attempt{
		"by an undo that failed": func(t *testing.T, c *fakecloud.Cloud, memory *records.Memory) records.Attempt {
			h := hostOf(c, memory, "one")
			c.OnStart = func(context.Context) error { return provider.Errorf(provider.CodeFailed, "no such command") }
			c.OnDestroy = func(context.Context) error { return provider.Errorf(provider.CodeUnreachable, "502") }
			_, err := h.Connect(t.Context(), request(), nil)
			same(t, "cleanup", failureCleanup(err), CleanupFailed)
			return recordOf(t, h).OwnAttempt()
		},
		"by a host that ended while it created": func(t *testing.T, _ *fakecloud.Cloud, memory *records.Memory) records.Attempt {
			h := hostOf(nil, memory, "one")
			taken, record, err := h.store.Take(t.Context(), "s1")
			ok(t, err)
			record.Provider, record.State, record.Attempt = "acme", records.StateCreating, "a1"
			ok(t, h.store.Save(t.Context(), taken, record))
			h.store.End()
			return recordOf(t, h).OwnAttempt()
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				memory := records.NewMemory()
				owing := interrupt(t, fakecloud.New(), memory)
				store := memory.Store("two")
				other := host{New(fakecloud.New(), "umbrella", testOwner, []byte("host secret"), store), store}
				result, err := other.Connect(t.Context(), request(), nil)
				ok(t, err)
				same(t, "provider", result.Provider, "umbrella")
				same(t, "provider recorded", recordOf(t, other).Provider, "umbrella")
				owed, err := store.Owed(t.Context(), "s1")
				ok(t, err)
				if len(owed) != 1 {
					t.Fatalf("owed: %+v", owed)
				}
				owing.UpdatedAt, owed[0].UpdatedAt = time.Time{}, time.Time{}
				same(t, "owed", owed[0], owing)
			})
		})
	}
}

func TestAConnectFinishesWhatEarlierAttemptsOweOnItsProvider(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := fakecloud.New()
		h := hostOf(c, records.NewMemory(), "one")
		first := c.Put(provider.Sandbox{Session: "s1", Owner: testOwner, Attempt: "a1", State: provider.StateRunning})
		taken, record, err := h.store.Take(t.Context(), "s1")
		ok(t, err)
		for _, owing := range []records.Attempt{
			{ID: "a1", Provider: "acme", State: records.StateCreating},
			{ID: "a2", Provider: "acme", SandboxID: "long gone", State: records.StateDestroying},
			{ID: "a3", Provider: "umbrella", SandboxID: "theirs", State: records.StateDestroying},
		} {
			ok(t, h.store.SaveAttempt(t.Context(), taken, owing))
		}
		ok(t, h.store.Release(t.Context(), taken, record))
		result, err := h.Connect(t.Context(), request(), nil)
		ok(t, err)
		if result.SandboxID == first {
			t.Error("it attached to a sandbox that was to be destroyed")
		}
		same(t, "left", strings.Join(c.Left(), " "), result.SandboxID)
		owed, err := h.store.Owed(t.Context(), "s1")
		ok(t, err)
		if len(owed) != 1 || owed[0].ID != "a3" {
			t.Errorf("owed: %+v", owed)
		}
	})
}

func TestAnAttemptThatMadeNothingOwesNothing(t *testing.T) {
	t.Parallel()
	for name, spoil := range map[string]func(*fakecloud.Cloud){
		"refused": func(c *fakecloud.Cloud) {
			c.OnCreate = func(context.Context, func() provider.Sandbox) (provider.Sandbox, error) {
				return provider.Sandbox{}, provider.Errorf(provider.CodeInvalid, "no such image")
			}
		},
		"adopted": func(c *fakecloud.Cloud) { // the create finds what the look before it did not
			c.OnAttach = func(context.Context) error { return provider.Errorf(provider.CodeNotFound, "the listing lags") }
			c.Put(provider.Sandbox{Session: "s1", Owner: testOwner, Attempt: "a0", State: provider.StateRunning})
		},
		"undone": func(c *fakecloud.Cloud) {
			c.OnStart = func(context.Context) error { return provider.Errorf(provider.CodeFailed, "no such command") }
		},
		"recorded, and gone": func(*fakecloud.Cloud) {},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				c := fakecloud.New()
				spoil(c)
				h := hostOf(c, records.NewMemory(), "one")
				if name == "recorded, and gone" {
					taken, record, err := h.store.Take(t.Context(), "s1")
					ok(t, err)
					record.Provider, record.State, record.Attempt, record.SandboxID = "acme", records.StateCreating, "a1", "x"
					ok(t, h.store.Release(t.Context(), taken, record))
				}
				_, _ = h.Connect(t.Context(), request(), nil)
				taken, record, err := h.store.Take(t.Context(), "s1")
				ok(t, err)
				record.Attempt, record.SandboxID, record.State = "later", "another", records.StateRunning
				ok(t, h.store.Release(t.Context(), taken, record))
				owed, err := h.store.Owed(t.Context(), "s1")
				ok(t, err)
				if len(owed) > 0 {
					t.Errorf("owed: %+v", owed)
				}
			})
		})
	}
}

func TestRecordsThatAnswerTooLateAreTheRecordsFailure(t *testing.T) {
	t.Parallel()
	late := &records.UnusableError{Where: "records.db", Problem: "locked", Passes: true, Cause: context.DeadlineExceeded}
	for limit, set := range map[string]func(*Limits){
		"Total":  func(l *Limits) { l.Total = time.Minute },
		"Create": func(l *Limits) { l.Create = time.Minute },
		"None":   func(*Limits) {},
	} {
		for at, spoil := range map[string]func(f *faulty, wait func() error){
			"Intent": func(f *faulty, wait func() error) { f.save = func(records.Record) error { return wait() } },
			"Sandbox": func(f *faulty, wait func() error) {
				f.save = func(r records.Record) error { return ifSandbox(r, wait) }
			},
			"Start": func(f *faulty, wait func() error) {
				f.release = func(r records.Record) error { return ifRunning(r, wait) }
			},
		} {
			t.Run(limit+"At"+at, func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					c := fakecloud.New()
					f := &faulty{Store: records.NewMemory().Store("one")}
					spoil(f, func() error {
						time.Sleep(2 * time.Minute)
						return late
					})
					r := request()
					set(&r.Limits)
					_, err := New(c, "acme", testOwner, []byte("host secret"), f).Connect(t.Context(), r, nil)
					if e := failure(t, err, CodeRecordsUnusable); !e.Retryable {
						t.Error("it is not retryable")
					}
					nothingLeft(t, c)
				})
			})
		}
	}
}

func ifSandbox(r records.Record, do func() error) error {
	if r.SandboxID == "" {
		return nil
	}
	return do()
}

func ifRunning(r records.Record, do func() error) error {
	if r.State != records.StateRunning {
		return nil
	}
	return do()
}

func TestASuspendedSandboxIsNotWokenUnlessThatIsRecorded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c, memory := fakecloud.New(), records.NewMemory()
		h := hostOf(c, memory, "one")
		_, err := h.Connect(t.Context(), request(), nil)
		ok(t, err)
		l, record, err := h.store.Take(t.Context(), "s1")
		ok(t, err)
		record.State = records.StateSuspended
		ok(t, h.store.Release(t.Context(), l, record))

		broken := errors.New("the disk is full")
		store := &faulty{Store: h.store, save: func(records.Record) error { return broken }}
		before := c.Count("attach")
		_, err = New(c, "acme", testOwner, []byte("host secret"), store).Connect(t.Context(), request(), nil)
		if e := failure(t, err, CodeRecordsUnusable); !errors.Is(e, broken) {
			t.Errorf("got %v", e)
		}
		same(t, "attached", c.Count("attach"), before)
	})
}

func TestAnAttachThatFindsNothingRecordsThat(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c, memory := fakecloud.New(), records.NewMemory()
		h := hostOf(c, memory, "one")
		result, err := h.Connect(t.Context(), request(), nil)
		ok(t, err)
		delete(c.Sandboxes, result.SandboxID)
		req := request()
		req.Mode = ModeAttach
		_, err = h.Connect(t.Context(), req, nil)
		failure(t, err, CodeNotFound)
		same(t, "state", recordOf(t, h).State, records.StateGone)
	})
}

func TestAFailedAttachChangesNoRecord(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c, memory := fakecloud.New(), records.NewMemory()
		h := hostOf(c, memory, "one")
		_, err := h.Connect(t.Context(), request(), nil)
		ok(t, err)
		before := recordOf(t, h)
		c.OnAttach = func(context.Context) error { return provider.Errorf(provider.CodeUnreachable, "no route") }
		_, err = h.Connect(t.Context(), request(), nil)
		failure(t, err, CodeUnreachable)
		same(t, "state", recordOf(t, h).State, before.State)
		same(t, "sandbox", recordOf(t, h).SandboxID, before.SandboxID)
	})
}

// TestAnAttachIsRecordedOnlyIfItChangesTheRecord: attaching to a session that is as recorded must not cost a durable write
// before the server is asked.
func TestAnAttachIsRecordedOnlyIfItChangesTheRecord(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name   string
		change func(*records.Record)
		saves  int
	}{
		{"as recorded", func(*records.Record) {}, 0},
		{"another sandbox", func(r *records.Record) { r.SandboxID = "box-of-before" }, 1},
		{"being created", func(r *records.Record) { r.State = records.StateCreating }, 1},
	} {
		synctest.Test(t, func(t *testing.T) {
			c, memory := fakecloud.New(), records.NewMemory()
			h := hostOf(c, memory, "one")
			_, err := h.Connect(t.Context(), request(), nil)
			ok(t, err)
			l, record, err := h.store.Take(t.Context(), "s1")
			ok(t, err)
			test.change(&record)
			ok(t, h.store.Release(t.Context(), l, record))

			saves := 0
			store := &faulty{Store: h.store, save: func(records.Record) error { saves++; return nil }}
			_, err = New(c, "acme", testOwner, []byte("host secret"), store).Connect(t.Context(), request(), nil)
			ok(t, err)
			same(t, test.name+": saves", saves, test.saves)
		})
	}
}
