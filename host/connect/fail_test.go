package connect

import (
	"context"
	"slices"
	"strings"
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

func TestTheLogIsFetchedOnlyWhereItHelps(t *testing.T) {
	t.Parallel()
	for status, test := range map[provider.PingStatus]struct {
		code Code
		log  string
	}{
		provider.PingExited:  {CodeServerExited, "booting,still booting"},
		provider.PingStopped: {CodeSandboxStopped, ""},
	} {
		synctest.Test(t, func(t *testing.T) {
			c := fakecloud.New()
			c.OnPing = func(context.Context, time.Duration) (provider.PingResult, error) {
				return provider.PingResult{Status: status}, nil
			}
			_, err := connector(c).Connect(t.Context(), request(), nil)
			same(t, string(status), strings.Join(failure(t, err, test.code).LogTail, ","), test.log)
		})
	}
}

// silent is a cloud whose logs never come.
type silent struct{ *fakecloud.Cloud }

func (silent) Logs(ctx context.Context, _ provider.LogsRequest) ([]string, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

func TestALogThatDoesNotComeIsNotWaitedForLong(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := fakecloud.New()
		c.OnPing = func(context.Context, time.Duration) (provider.PingResult, error) {
			return provider.PingResult{Status: provider.PingExited}, nil
		}
		began := time.Now()
		_, err := connector(silent{c}).Connect(t.Context(), request(), nil)
		failure(t, err, CodeServerExited)
		same(t, "time", time.Since(began), 3*time.Second)
		nothingLeft(t, c)
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
