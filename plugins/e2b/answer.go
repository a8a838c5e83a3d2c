package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"
)

// answer is what came back for a request into a sandbox when it was not a success. E2B's proxy answers for a sandbox
// that cannot: its status is 502 in every case, and only its words tell what is the matter.
type answer struct {
	mutex      sync.Mutex
	status     int
	retryAfter time.Duration
	// message is E2B's own, empty if somebody else answered.
	message string
}

func (a *answer) read() (status int, retryAfter time.Duration, message string) {
	a.mutex.Lock()
	defer a.mutex.Unlock()
	return a.status, a.retryAfter, a.message
}

// closedPort says that the sandbox runs and nothing listens on the port.
func (a *answer) closedPort() bool {
	status, _, message := a.read()
	return status == http.StatusBadGateway && strings.Contains(message, "port is not open")
}

// noSandbox says that the sandbox is paused or gone: the proxy does not tell these apart.
func (a *answer) noSandbox() bool {
	status, _, message := a.read()
	return status == http.StatusBadGateway && strings.Contains(message, "sandbox was not found")
}

type answerKey struct{}

// withAnswer lets the requests made with ctx leave their answer.
func withAnswer(ctx context.Context, a *answer) context.Context {
	return context.WithValue(ctx, answerKey{}, a)
}

// listener is a transport that notes answers which are not a success. Bodies stay whole.
type listener struct{ http.RoundTripper }

const answerLimit = 16 << 10

func (l listener) RoundTrip(request *http.Request) (*http.Response, error) {
	response, err := l.RoundTripper.RoundTrip(request)
	a, wanted := request.Context().Value(answerKey{}).(*answer)
	if err != nil || !wanted {
		return response, err
	}
	a.mutex.Lock()
	defer a.mutex.Unlock()
	a.status, a.retryAfter, a.message = response.StatusCode, retryAfter(response.Header), ""
	if response.StatusCode < 400 || !strings.HasPrefix(response.Header.Get("Content-Type"), "application/json") {
		return response, nil
	}
	start, err := io.ReadAll(io.LimitReader(response.Body, answerLimit))
	body := response.Body
	response.Body = struct {
		io.Reader
		io.Closer
	}{io.MultiReader(bytes.NewReader(start), body), body}
	var said struct {
		SandboxID string          `json:"sandboxId"`
		Message   string          `json:"message"`
		Code      json.RawMessage `json:"code"`
	}
	if err == nil && json.Unmarshal(start, &said) == nil && (said.SandboxID != "" || len(said.Code) > 0) {
		a.message = said.Message
	}
	return response, nil
}

// CloseIdleConnections passes it on.
func (l listener) CloseIdleConnections() {
	if t, ok := l.RoundTripper.(*http.Transport); ok {
		t.CloseIdleConnections()
	}
}
