package connect

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/berth-dev/berth/host/records"
	"github.com/berth-dev/berth/internal/fakecloud"
	"github.com/berth-dev/berth/shared/provider"
)

// progressOf returns the messages of a connect's progress.
func progressOf(t *testing.T, c *Connector, req Request) (messages []string, err error) {
	t.Helper()
	_, err = c.Connect(t.Context(), req, func(e Event) {
		if e.Status == StatusProgress {
			messages = append(messages, e.Message)
		}
	})
	return messages, err
}

func TestWhatIsFinishedFirstIsNamedAfterTheCommandThatLeftIt(t *testing.T) {
	t.Parallel()
	for state, want := range map[records.State]string{
		records.StateCreating:   "finishing what an interrupted connect left",
		records.StateDestroying: "finishing what an interrupted disconnect left",
	} {
		synctest.Test(t, func(t *testing.T) {
			c, memory := fakecloud.New(), records.NewMemory()
			h := hostOf(c, memory, "one")
			l, record, err := h.store.Take(t.Context(), "s1")
			ok(t, err)
			record.Provider, record.State, record.Attempt = "acme", state, "attempt-0"
			ok(t, h.store.Release(t.Context(), l, record))
			messages, err := progressOf(t, h.Connector, request())
			ok(t, err)
			if !slices.Contains(messages, want) {
				t.Errorf("%s: %q is missing in %q", state, want, messages)
			}
		})
	}
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

func TestTheDefaultsAreTheDocumentedOnes(t *testing.T) {
	t.Parallel()
	same(t, "health", DefaultHealth(), Health{Timeout: 2 * time.Minute, Interval: time.Second, Ramp: RampAuto, ProbeTimeout: 5 * time.Second})
	same(t, "limits", DefaultLimits(), Limits{Total: 10 * time.Minute, Create: 5 * time.Minute, Start: time.Minute, Undo: 30 * time.Second})
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

func TestACallerThatHasLeftIsToldNothingMore(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := fakecloud.New()
		c.BootTime = 10 * time.Second
		con := connector(c)
		var left, stays atomic.Int64
		leaving, leave := context.WithCancel(t.Context())
		gone, done := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(done)
			_, err := con.Connect(t.Context(), request(), func(Event) { stays.Add(1) })
			if err != nil {
				t.Error(err)
			}
		}()
		go func() {
			defer close(gone)
			_, _ = con.Connect(leaving, request(), func(Event) { left.Add(1) })
		}()
		time.Sleep(5 * time.Second)
		leave()
		<-gone
		whenLeft, stayed := left.Load(), stays.Load()
		<-done
		same(t, "events after leaving", left.Load(), whenLeft)
		if end := stays.Load(); whenLeft == 0 || end <= stayed {
			t.Errorf("events: %d before leaving; the other caller had %d, and %d at the end", whenLeft, stayed, end)
		}
	})
}

func TestTheLogIsFetchedForAServerThatExitedWithoutOne(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := fakecloud.New()
		c.OnPing = func(context.Context, time.Duration) (provider.PingResult, error) {
			return provider.PingResult{Status: provider.PingExited}, nil
		}
		_, err := connector(c).Connect(t.Context(), request(), nil)
		e := failure(t, err, CodeServerExited)
		same(t, "log", strings.Join(e.LogTail, ","), "booting,still booting")
		same(t, "message", e.Message, "the server exited")
	})
}

func TestALogIsNotFetchedForOtherFailures(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := fakecloud.New()
		c.OnPing = func(context.Context, time.Duration) (provider.PingResult, error) {
			return provider.PingResult{Status: provider.PingStopped}, nil
		}
		_, err := connector(c).Connect(t.Context(), request(), nil)
		same(t, "log", len(failure(t, err, CodeSandboxStopped).LogTail), 0)
	})
}

// TestAWaitForAnotherHostIsNamedOnlyWhereItExplainsTheFailure: a failure of another kind has its own reason.
func TestAWaitForAnotherHostIsNamedOnlyWhereItExplainsTheFailure(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		err  error
		want bool
	}{
		{&Error{Code: CodeDeadline, Message: "late"}, true},
		{&Error{Code: CodeCancelled, Message: "cancelled"}, true},
		{&Error{Code: CodeRecordsUnusable, Message: "the disk is full"}, false},
	} {
		a := newAttempt(connector(fakecloud.New()).account, keys{}, request(), func(Event) {})
		a.waitsFor = "host two"
		e := a.describe(t.Context(), test.err)
		same(t, e.Message, strings.Contains(e.Message, "host two"), test.want)
		a.waitsFor = ""
		same(t, "nobody waited for", strings.Contains(a.describe(t.Context(), &Error{Code: CodeDeadline}).Message, "waiting"), false)
	}
}
