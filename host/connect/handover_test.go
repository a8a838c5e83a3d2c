package connect

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"

	"github.com/berth-dev/berth/host/records"
	"github.com/berth-dev/berth/internal/fakecloud"
	"github.com/berth-dev/berth/shared/provider"
)

func TestAResultThatNobodyTakesIsAFailureAndUndoesWhatWasMade(t *testing.T) {
	t.Parallel()
	refuses := func(context.Context, Result) error { return errors.New("nobody is there") }
	waits := func(ctx context.Context, _ Result) error {
		<-ctx.Done()
		return ctx.Err()
	}
	for name, handOver := range map[string]func(context.Context, Result) error{"refused": refuses, "waited for until the deadline": waits} {
		for _, found := range []provider.State{"", provider.StateRunning, provider.StateSuspended} {
			synctest.Test(t, func(t *testing.T) {
				c := fakecloud.New()
				if found != "" {
					c.Put(provider.Sandbox{Session: "s1", Owner: testOwner, State: found})
				}
				store := records.NewMemory().Store("test")
				req := request()
				var during records.State
				req.HandOver = func(ctx context.Context, r Result) error {
					record, err := store.Get(ctx, "s1")
					ok(t, err)
					during = record.State
					if r.Endpoint.URL == "" {
						t.Error("the result has no URL")
					}
					return handOver(ctx, r)
				}
				_, err := New(c, "acme", testOwner, []byte("host secret"), store).Connect(t.Context(), req, nil)
				e := failure(t, err, CodeUndelivered)
				same(t, name+": phase", e.Phase, PhaseReady)
				record, err := store.Get(t.Context(), "s1")
				ok(t, err)
				if found == "" {
					same(t, name+": the record until then", during, records.StateCreating)
					same(t, name+": cleanup", e.Cleanup, CleanupDone)
					same(t, name+": the record", record.State, records.StateGone)
					nothingLeft(t, c)
					return
				}
				cleanup := CleanupNone
				if found == provider.StateSuspended {
					cleanup = CleanupKept
				}
				same(t, name+": cleanup", e.Cleanup, cleanup)
				same(t, name+": the record", record.State, records.StateRunning)
				same(t, name+": sandboxes", len(c.Left()), 1)
			})
		}
	}
}

func TestAnInterruptWhileTheResultIsHandedOverIsOne(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := fakecloud.New()
		ctx, cancel := context.WithCancel(t.Context())
		req := request()
		req.HandOver = func(ctx context.Context, _ Result) error {
			cancel()
			<-ctx.Done()
			return ctx.Err()
		}
		_, err := connector(c).Connect(ctx, req, nil)
		same(t, "cleanup", failure(t, err, CodeCancelled).Cleanup, CleanupDone)
		nothingLeft(t, c)
	})
}
