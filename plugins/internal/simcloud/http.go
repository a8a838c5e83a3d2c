package simcloud

import (
	"context"
	"io"
	"net/http"
	"time"

	"google.golang.org/grpc/codes"
)

// HTTP returns the middleware for a handler. operation returns the name of a request's operation; requests named "" are
// neither logged nor faulty. With Fault.After, the effect counts as done when the handler begins its answer. The answer
// is lost, and the request's context is cancelled to end handlers that stream.
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
		defer func() { // also if the handler or a fault aborts the connection
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
		// Read all of it: only then has the request arrived, and does the server notice a client that disconnects.
		_, _ = io.Copy(io.Discard, body)
		fault.answer(answer, r)
	})
}

// answer sends what a faulty HTTP call's client receives.
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

// pause waits for the delay or until ctx ends.
func pause(ctx context.Context, delay time.Duration) {
	if delay <= 0 {
		return
	}
	select {
	case <-time.After(delay):
	case <-ctx.Done():
	}
}

// loggedBody logs what is read of a request.
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

// answerWatch records the status of an answer.
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

// Flush and Unwrap let handlers stream and hijack the connection.
func (w *answerWatch) Flush() { _ = http.NewResponseController(w.ResponseWriter).Flush() }

func (w *answerWatch) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// lostAnswer discards an answer.
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
