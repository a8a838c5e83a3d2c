package cloud

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/sethvargo/go-retry"

	"github.com/berth-dev/berth/shared/provider"
)

// Retry says how a call is repeated that failed in passing.
type Retry struct {
	// Tries is how often the call is made at most.
	Tries int
	// First is the pause after the first try. It doubles with every try, up to Most.
	First, Most time.Duration
	// Longest is the longest wait that a cloud may ask for (Retry-After) and that is not left to the host.
	Longest time.Duration
}

// Repeat makes a call, and makes it again while its error is Retryable. It waits as long as the cloud asked it to, and some
// more at random, so that many callers do not come back at once. It is for calls that are safe to repeat.
func Repeat[T any](ctx context.Context, r Retry, call func(context.Context) (T, error)) (T, error) {
	return repeat(ctx, r, call, func(e *provider.Error) bool { return e.Retryable })
}

func repeat[T any](ctx context.Context, r Retry, call func(context.Context) (T, error), again func(*provider.Error) bool) (T, error) {
	var value T
	var last *provider.Error
	pauses := retry.WithMaxRetries(uint64(max(0, r.Tries-1)),
		retry.WithCappedDuration(max(r.First, r.Most), retry.WithJitterPercent(20, retry.NewExponential(max(r.First, time.Millisecond)))))
	obedient := retry.BackoffFunc(func() (time.Duration, bool) {
		pause, stop := pauses.Next()
		return max(pause, last.RetryAfter), stop
	})
	err := retry.Do(ctx, obedient, func(ctx context.Context) error {
		var err error
		value, err = call(ctx)
		last = provider.AsError(err)
		if last != nil && ctx.Err() == nil && again(last) && last.RetryAfter <= r.Longest && timeFor(ctx, last.RetryAfter) {
			return retry.RetryableError(last)
		}
		return err
	})
	var none T
	switch {
	case err == nil:
		return value, nil
	case last == nil: // ctx had ended before the first try
		return none, Ended(ctx, "the call")
	case ctx.Err() != nil && last.Code != provider.CodeTimeout && last.Code != provider.CodeCanceled:
		// A pause was cut short: what the cloud said last is worth more than that.
		e := Ended(ctx, "the call")
		e.Message = fmt.Sprintf("%s, after: %s", e.Message, last.Message)
		return none, e
	}
	return none, last
}

// timeFor reports whether ctx lasts longer than d.
func timeFor(ctx context.Context, d time.Duration) bool {
	deadline, limited := ctx.Deadline()
	return !limited || time.Now().Add(d).Before(deadline)
}

// Pause waits, and reports whether ctx still holds after that.
func Pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}

// RetryAfter returns how long an answer asks to wait, 0 if it does not. It knows seconds and dates, and milliseconds in
// Retry-After-Ms.
func RetryAfter(header http.Header) time.Duration {
	if ms, err := strconv.ParseFloat(header.Get("Retry-After-Ms"), 64); err == nil && ms > 0 && ms < 1e9 {
		return time.Duration(ms * float64(time.Millisecond))
	}
	value := header.Get("Retry-After")
	if seconds, err := strconv.ParseFloat(value, 64); err == nil && seconds > 0 && seconds < 1e6 {
		return time.Duration(seconds * float64(time.Second))
	}
	if at, err := http.ParseTime(value); err == nil {
		return max(0, time.Until(at))
	}
	return 0
}
