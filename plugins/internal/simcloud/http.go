package simcloud

import (
	"context"
	"io"
	"net/http"
	"time"

	"google.golang.org/grpc/codes"
)

// HTTP is a handler's middleware. operation names the operation of a request; a request named "" passes unlogged and
// without faults. Fault.After takes the effect for done when the handler begins to answer: what it then writes is lost
// and the request's context ends, so that a handler that streams ends too.
func (t *Traffic) HTTP(operation func(*http.Request) string, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name := operation(r)
		if name == "" {
			next.ServeHTTP(w, r)
			return
		}
		call := &Call{Operation: name, Method: r.Method, Path: r.URL.RequestURI(), Headers: r.Header.Clone()}
		fault := t.begin(call)
		body := &loggedBody{ReadCloser: r.Body, traffic: t, call: call}
		answer := &answerWatch{ResponseWriter: w}
		logged := r.Clone(r.Context())
		logged.Body = body

		outcome := Answered
		defer func() { // also when the handler or a fault aborts the connection
			t.note(func() { call.Outcome, call.Status, call.Took = outcome, answer.status, time.Since(call.Time) })
		}()
		if fault != nil {
			pause(r.Context(), fault.Delay)
		}
		if fault == nil || fault.onlyDelays() {
			next.ServeHTTP(answer, logged)
			if answer.status == 0 {
				answer.status = http.StatusOK
			}
			return
		}
		outcome = fault.outcome()
		if fault.After {
			lost := &lostAnswer{header: http.Header{}}
			ctx, cancel := context.WithCancel(r.Context())
			lost.begun = cancel
			next.ServeHTTP(lost, logged.WithContext(ctx))
			cancel()
		}
		// Read whole, the request has arrived; and only then does the server notice that the client goes.
		_, _ = io.Copy(io.Discard, body)
		fault.answer(answer, r)
	})
}

// answer is what the client of a faulty HTTP call gets.
func (f *Fault) answer(w http.ResponseWriter, r *http.Request) {
	switch {
	case f.Hang:
		<-r.Context().Done()
		panic(http.ErrAbortHandler)
	case f.Drop || f.Status == 0 && f.Code != codes.OK:
		panic(http.ErrAbortHandler)
	}
	for name, value := range f.Headers {
		w.Header().Set(name, value)
	}
	w.WriteHeader(f.Status)
	_, _ = io.WriteString(w, f.Body)
}

// pause waits, but no longer than the call lives.
func pause(ctx context.Context, delay time.Duration) {
	if delay <= 0 {
		return
	}
	select {
	case <-time.After(delay):
	case <-ctx.Done():
	}
}

// loggedBody notes what is read of a request.
type loggedBody struct {
	io.ReadCloser
	traffic *Traffic
	call    *Call
}

func (b *loggedBody) Read(buffer []byte) (int, error) {
	n, err := b.ReadCloser.Read(buffer)
	b.traffic.note(func() {
		b.call.Body += string(buffer[:min(n, bodyLimit-len(b.call.Body))])
	})
	return n, err
}

// answerWatch notes the status of an answer.
type answerWatch struct {
	http.ResponseWriter
	status int
}

func (w *answerWatch) WriteHeader(status int) {
	if w.status == 0 && (status >= 200 || status == http.StatusSwitchingProtocols) {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *answerWatch) Write(data []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	return w.ResponseWriter.Write(data)
}

// Flush and Unwrap let handlers stream and take the connection over.
func (w *answerWatch) Flush() { _ = http.NewResponseController(w.ResponseWriter).Flush() }

func (w *answerWatch) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// lostAnswer swallows an answer.
type lostAnswer struct {
	header http.Header
	begun  func()
}

func (w *lostAnswer) Header() http.Header { return w.header }

func (w *lostAnswer) WriteHeader(int) { w.begun() }

func (w *lostAnswer) Write(data []byte) (int, error) {
	w.begun()
	return len(data), nil
}

func (w *lostAnswer) Flush() { w.begun() }
