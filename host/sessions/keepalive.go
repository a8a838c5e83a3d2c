package sessions

import (
	"context"
	"errors"
	"time"

	"github.com/sethvargo/go-retry"

	"github.com/berth-dev/berth/host/connect"
)

const (
	// shortestPause is the shortest time between two renewals, whatever little the provider grants.
	shortestPause = time.Second
	// firstLimit bounds the first try of a renewal, so that one that hangs is told and repeated. Each next one has as much
	// time again, for a provider that is slow, up to renewLimit.
	firstLimit = 10 * time.Second
	renewLimit = time.Minute
)

// Renewal is what a try to renew came to.
type Renewal struct {
	SandboxID string
	// End is when the sandbox ends unless it is renewed again. Zero is never.
	End time.Time
	// Err is why the try failed. It is repeated until GiveUp. It is nil, and GiveUp zero, if the sandbox was renewed.
	Err    *connect.Error
	GiveUp time.Time
}

// KeepAlive renews the session's sandbox as Renew does, at once and then three times per lifetime, until ctx ends, and
// returns its error. A first renewal that fails is returned: nothing is kept alive yet. A later one is repeated, however it
// failed, until a third of the lifetime has passed: a network, the records or the provider may come back. Failures that
// waiting cannot change, such as that the sandbox is gone, end it at once. Apart from that of ctx errors are
// *connect.Error. tried is told every try, from this goroutine.
func (s *Sessions) KeepAlive(
	ctx context.Context, session string, lifetime time.Duration, waiting func(holder string), tried func(Renewal),
) error {
	began := time.Now()
	id, end, err := s.Renew(ctx, session, lifetime, waiting)
	for err == nil {
		tried(Renewal{SandboxID: id, End: end})
		third := lifetime / 3
		if !end.IsZero() { // the provider may grant less than was asked
			third = min(third, end.Sub(began)/3)
		}
		third = max(third, shortestPause)
		if err := sleep(ctx, third); err != nil {
			return err
		}
		began = time.Now()
		id, end, err = s.renewPatiently(ctx, session, lifetime, third, waiting, tried)
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

// renewPatiently repeats Renew until it succeeds, fails for good, or patience is over.
func (s *Sessions) renewPatiently(
	ctx context.Context, session string, lifetime, patience time.Duration, waiting func(holder string), tried func(Renewal),
) (sandboxID string, end time.Time, err error) {
	giveUp := time.Now().Add(patience)
	exponential := retry.WithCappedDuration(10*time.Second, retry.NewExponential(500*time.Millisecond))
	pauses := retry.BackoffFunc(func() (time.Duration, bool) {
		pause, _ := exponential.Next()
		return pause, time.Until(giveUp) <= pause
	})
	limit := time.Duration(0)
	err = retry.Do(ctx, pauses, func(ctx context.Context) error {
		limit = min(limit+firstLimit, renewLimit, patience)
		try, cancel := context.WithTimeout(ctx, limit)
		defer cancel()
		sandboxID, end, err = s.Renew(try, session, lifetime, waiting)
		var e *connect.Error
		if errors.As(err, &e) && ctx.Err() == nil && mayPass(e) {
			tried(Renewal{SandboxID: sandboxID, Err: e, GiveUp: giveUp})
			return retry.RetryableError(err)
		}
		return err
	})
	return sandboxID, end, err
}

// mayPass reports whether waiting can change the failure of a renewal.
func mayPass(e *connect.Error) bool {
	switch e.Code {
	case connect.CodeNotFound, connect.CodeAlreadyExists, connect.CodeUnsupported, connect.CodeInvalidConfig, connect.CodeDenied:
		return e.Retryable
	}
	return true
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
