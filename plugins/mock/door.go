package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/berth-dev/berth/shared/provider"
)

// door is the cloud's API at an address other than the default one. It must answer "mock" to everything. All it is for are
// answers that a cloud gives on bad days, or that get lost on the way.
type door struct {
	url    string
	client *http.Client
}

// errAnswerLost is a request that the cloud may have carried out.
var errAnswerLost = errors.New("the cloud's answer got lost")

// ask makes one request. A nil door is open.
func (d *door) ask(ctx context.Context, method string) error {
	if d == nil {
		return nil
	}
	request, err := http.NewRequestWithContext(ctx, method, d.url+"/sandboxes", nil)
	if err != nil {
		return provider.Errorf(provider.CodeInvalid, "api_url is malformed")
	}
	response, err := d.client.Do(request)
	if err != nil {
		return d.silent(ctx, err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(io.LimitReader(response.Body, 1<<10))
	code := provider.CodeUnreachable
	switch {
	case err == nil && response.StatusCode == http.StatusOK && strings.TrimSpace(string(text)) == "mock":
		return nil
	case response.StatusCode == http.StatusUnauthorized, response.StatusCode == http.StatusForbidden:
		code = provider.CodeDenied
	case response.StatusCode == http.StatusTooManyRequests:
		seconds, _ := strconv.Atoi(response.Header.Get("Retry-After")) // 0 without
		return &provider.Error{
			Code: provider.CodeExhausted, Reason: provider.ReasonRateLimit, Retryable: true, Message: doorSays(response.StatusCode),
			RetryAfter: time.Duration(seconds) * time.Second,
		}
	}
	return provider.Errorf(code, "%s", doorSays(response.StatusCode))
}

func doorSays(status int) string { return fmt.Sprintf("the cloud answers with status %d", status) }

// silent classifies a request without an answer.
func (d *door) silent(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	failure := &provider.Error{
		Code: provider.CodeUnreachable, Retryable: true, Message: "the cloud does not answer at " + d.url,
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		failure.Cause = errAnswerLost
	}
	return failure
}

// order asks the cloud to make a sandbox. After errAnswerLost it has one, or not.
func (s *store) order(ctx context.Context) error { return s.door.ask(ctx, http.MethodPost) }
