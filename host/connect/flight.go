package connect

import (
	"context"
	"errors"
	"reflect"
	"slices"
	"sync"
)

// flights lets equal requests for one session share one attempt.
type flights struct {
	mutex   sync.Mutex
	running map[string]*flight // by session
}

// flight is one attempt and the callers that wait for it. Its goroutine ends before the last caller returns.
type flight struct {
	request Request
	cancel  context.CancelCauseFunc
	done    chan struct{}
	result  Result // result and err are set when done is closed
	err     error

	// The rest is guarded by flights.mutex.
	callers   int
	abandoned bool // the last caller has gone: nobody may join any more

	sinksMutex sync.Mutex
	sinks      []*func(Event)
}

type connectFunc func(ctx context.Context, req Request, events func(Event)) (Result, error)

// join calls connect with the request, or waits with the other callers for the attempt under way. events may be nil.
func (fs *flights) join(ctx context.Context, req Request, events func(Event), connect connectFunc) (Result, error) {
	if events == nil {
		events = func(Event) {}
	}
	for {
		f, joined := fs.board(ctx, req, &events, connect)
		if joined {
			defer f.unlisten(&events)
			return fs.wait(ctx, f)
		}
		select { // a different request, or an attempt that is being undone: our turn comes after it
		case <-f.done:
		case <-ctx.Done():
			return Result{}, leftEarly(ctx, req)
		}
	}
}

// board returns the session's flight, a new one if there is none, and reports whether the caller is on it.
func (fs *flights) board(ctx context.Context, req Request, sink *func(Event), connect connectFunc) (*flight, bool) {
	fs.mutex.Lock()
	defer fs.mutex.Unlock()
	if f := fs.running[req.Session]; f != nil {
		if f.abandoned || !reflect.DeepEqual(f.request, req) {
			return f, false
		}
		f.callers++
		f.listen(sink)
		return f, true
	}
	// The attempt keeps the values of the first caller's context, but is cancelled only when all callers have gone.
	shared, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	f := &flight{request: req, cancel: cancel, done: make(chan struct{}), callers: 1}
	f.listen(sink)
	fs.running[req.Session] = f
	go func() {
		defer cancel(nil)
		f.result, f.err = connect(shared, req, f.broadcast)
		fs.mutex.Lock()
		delete(fs.running, req.Session)
		fs.mutex.Unlock()
		close(f.done)
	}()
	return f, true
}

func (fs *flights) wait(ctx context.Context, f *flight) (Result, error) {
	select {
	case <-f.done:
		return f.result.clone(), f.err
	case <-ctx.Done():
	}
	fs.mutex.Lock()
	f.callers--
	last := f.callers == 0
	f.abandoned = last
	fs.mutex.Unlock()
	if !last {
		return Result{}, leftEarly(ctx, f.request)
	}
	// The last caller stays until the attempt has undone what it made.
	f.cancel(context.Cause(ctx))
	<-f.done
	return f.result.clone(), f.err
}

// leftEarly returns the error of a caller that left while the attempt goes on without it.
func leftEarly(ctx context.Context, req Request) *Error {
	e := &Error{Code: CodeCancelled, Session: req.Session, Cleanup: CleanupNone, Message: "cancelled while another connect of this session goes on"}
	if errors.Is(context.Cause(ctx), context.DeadlineExceeded) {
		e.Code, e.Message = CodeDeadline, "the deadline passed while another connect of this session goes on"
	}
	return e
}

func (f *flight) listen(sink *func(Event)) {
	f.sinksMutex.Lock()
	defer f.sinksMutex.Unlock()
	f.sinks = append(f.sinks, sink)
}

func (f *flight) unlisten(sink *func(Event)) {
	f.sinksMutex.Lock()
	defer f.sinksMutex.Unlock()
	f.sinks = slices.DeleteFunc(f.sinks, func(s *func(Event)) bool { return s == sink })
}

func (f *flight) broadcast(e Event) {
	f.sinksMutex.Lock()
	defer f.sinksMutex.Unlock()
	for _, sink := range f.sinks {
		(*sink)(e)
	}
}
