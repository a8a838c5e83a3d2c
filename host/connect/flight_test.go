package connect

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/berth-dev/berth/internal/fakecloud"
)

func TestEqualConnectsAtTheSameTimeShareOneAttempt(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := fakecloud.New()
		c.BootTime = 3 * time.Second
		k := connector(c)
		var wg sync.WaitGroup
		for i := range 50 {
			wg.Go(func() {
				time.Sleep(time.Duration(i) * 10 * time.Millisecond)
				heard := 0
				result, err := k.Connect(t.Context(), request(), func(Event) { heard++ })
				if err != nil || result.SandboxID != "sb-1" || heard == 0 {
					t.Errorf("caller %d: %v, %v, %d events", i, result.SandboxID, err, heard)
				}
				result.Endpoint.Headers["mine"] = fmt.Sprint(i) // each caller owns its result
			})
		}
		wg.Wait()
		same(t, "creates", c.Count("create"), 1)
		same(t, "starts", c.Count("start"), 1)
	})
}

func TestACallerThatLeavesDoesNotEndTheAttemptOfTheOthers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := fakecloud.New()
		c.BootTime = 3 * time.Second
		k := connector(c)
		var wg sync.WaitGroup
		wg.Go(func() { // this one began the attempt, and goes first
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			began := time.Now()
			_, err := k.Connect(ctx, request(), nil)
			failure(t, err, CodeDeadline)
			same(t, "left after", time.Since(began), time.Second)
		})
		wg.Go(func() {
			time.Sleep(500 * time.Millisecond)
			_, err := k.Connect(t.Context(), request(), nil)
			ok(t, err)
		})
		wg.Wait()
		same(t, "creates", c.Count("create"), 1)
		same(t, "left", len(c.Left()), 1)
	})
}

func TestTheLastCallerToLeaveEndsTheAttemptAndWaitsForTheUndo(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := fakecloud.New()
		c.BootTime = time.Hour
		c.OnDestroy = func(context.Context) error {
			time.Sleep(time.Second)
			return nil
		}
		k := connector(c)
		var wg sync.WaitGroup
		for i := range 3 {
			wg.Go(func() {
				ctx, cancel := context.WithCancel(t.Context())
				time.AfterFunc(time.Duration(i+1)*time.Second, cancel)
				_, err := k.Connect(ctx, request(), nil)
				e := failure(t, err, CodeCancelled)
				if want := CleanupNone; i < 2 && e.Cleanup != want {
					t.Errorf("caller %d: cleanup %s", i, e.Cleanup)
				}
				if i == 2 {
					same(t, "cleanup", e.Cleanup, CleanupDone)
					nothingLeft(t, c)
				}
			})
		}
		wg.Wait()
	})
}

func TestAConnectDuringAnUndoWaitsForItAndStartsAfresh(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := fakecloud.New()
		c.BootTime = 10 * time.Second
		c.OnDestroy = func(context.Context) error {
			time.Sleep(5 * time.Second)
			return nil
		}
		k := connector(c)
		var wg sync.WaitGroup
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			_, err := k.Connect(ctx, request(), nil)
			failure(t, err, CodeDeadline)
		})
		wg.Go(func() {
			time.Sleep(2 * time.Second)
			result, err := k.Connect(t.Context(), request(), nil)
			ok(t, err)
			same(t, "sandbox", result.SandboxID, "sb-2")
		})
		wg.Wait()
	})
}

func TestADifferentRequestForTheSameSessionTakesItsTurn(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := fakecloud.New()
		c.BootTime = 3 * time.Second
		k := connector(c)
		var wg sync.WaitGroup
		wg.Go(func() {
			_, err := k.Connect(t.Context(), request(), nil)
			ok(t, err)
		})
		wg.Go(func() {
			time.Sleep(time.Second)
			other := request()
			other.Mode = ModeCreate
			_, err := k.Connect(t.Context(), other, nil)
			failure(t, err, CodeAlreadyExists)
		})
		wg.Wait()
		same(t, "creates", c.Count("create"), 1)
	})
}

func TestDifferentSessionsDoNotWaitForEachOther(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := fakecloud.New()
		c.BootTime = time.Second
		k := connector(c)
		began := time.Now()
		var wg sync.WaitGroup
		for i := range 100 {
			wg.Go(func() {
				req := request()
				req.Session = fmt.Sprintf("s-%d", i)
				_, err := k.Connect(t.Context(), req, nil)
				ok(t, err)
			})
		}
		wg.Wait()
		if took := time.Since(began); took > 2*time.Second {
			t.Errorf("100 sessions took %s", took)
		}
		same(t, "sandboxes", len(c.Left()), 100)
	})
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
