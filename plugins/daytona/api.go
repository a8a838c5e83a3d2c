package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	apiclient "github.com/daytonaio/daytona/libs/api-client-go"
	toolbox "github.com/daytonaio/daytona/libs/toolbox-api-client-go"

	"github.com/berth-dev/berth/shared/cloud"
	"github.com/berth-dev/berth/shared/provider"
)

// clientVersion is sent to the sandbox's daemon, which behaves as older ones did towards clients that name none.
const clientVersion = "0.190.0"

const userAgent = "berth-provider-daytona"

func newAPIClient(config Config, client *http.Client) *apiclient.APIClient {
	c := apiclient.NewConfiguration()
	c.Servers = apiclient.ServerConfigurations{{URL: config.APIURL}}
	c.HTTPClient, c.UserAgent = client, userAgent
	for name, value := range config.headers() {
		c.AddDefaultHeader(name, value)
	}
	return apiclient.NewAPIClient(c)
}

// toolbox returns the client of one sandbox's daemon. The cloud says where that is, so the way there must not be weaker
// than the one to the cloud.
func (d *Daytona) toolbox(b box) (*toolbox.APIClient, error) {
	u, err := url.Parse(b.daemon)
	if err != nil || u.Host == "" || u.Scheme != "https" && (u.Scheme != "http" || strings.HasPrefix(d.config.APIURL, "https:")) {
		return nil, provider.Errorf(provider.CodeUnreachable, "the cloud gave no safe address for the daemon of the sandbox %s", b.id)
	}
	c := toolbox.NewConfiguration()
	c.Servers = toolbox.ServerConfigurations{{URL: strings.TrimRight(b.daemon, "/") + "/" + url.PathEscape(b.id)}}
	c.HTTPClient, c.UserAgent = d.http, userAgent
	c.AddDefaultHeader("X-Daytona-SDK-Version", clientVersion)
	for name, value := range d.config.headers() {
		c.AddDefaultHeader(name, value)
	}
	return toolbox.NewAPIClient(c), nil
}

// headers are the credentials. They go to the API and to the daemons.
func (c *Config) headers() map[string]string {
	headers := map[string]string{"Authorization": "Bearer " + c.token()}
	if c.JWTToken != "" {
		headers["X-Daytona-Organization-ID"] = c.OrganizationID
	}
	return headers
}

// ask makes one call of either API, bounded by limit. doing completes the sentence "... failed".
func ask[T any](ctx context.Context, d *Daytona, limit time.Duration, doing string, call func(context.Context) (*T, *http.Response, error)) (*T, error) {
	within, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	value, response, err := call(within) //nolint:bodyclose // the generated clients read and close it
	switch {
	case response == nil && err != nil:
		return nil, cloud.NoAnswer(ctx, doing, limit, err)
	case err != nil || response.StatusCode >= 300:
		return nil, d.readFailure(doing, response, err)
	case value == nil: // the clients take an empty body for a success
		return nil, d.readFailure(doing, response, errors.New("an empty answer"))
	}
	return value, nil
}

// patiently is ask for a call that may be repeated: it is, where that can help.
func patiently[T any](ctx context.Context, d *Daytona, doing string, call func(context.Context) (*T, *http.Response, error)) (*T, error) {
	return cloud.Repeat(ctx, d.times.Retry, func(ctx context.Context) (*T, error) { return ask(ctx, d, d.times.call, doing, call) })
}

// readFailure reads an HTTP answer that is not the one asked for.
func (d *Daytona) readFailure(doing string, response *http.Response, err error) error {
	said := &cloud.StatusError{Status: response.StatusCode, Header: response.Header}
	var answer interface{ Body() []byte }
	if errors.As(err, &answer) { // the pointer form is the one the clients return
		var text struct {
			Message string `json:"message"`
		}
		said.JSON = json.Unmarshal(answer.Body(), &text) == nil && text.Message != ""
		said.Message = cloud.Presentable(text.Message, d.config.token())
	}
	e := cloud.ReadStatus(said)
	e.RetryAfter = retryAfter(response.Header)
	e.Message = fmt.Sprintf("%s failed: %s", doing, response.Status)
	if said.JSON {
		e.Message += ": " + said.Message
	}
	switch status := said.Status; {
	case status < 300:
		e.Code, e.Retryable = provider.CodeUnreachable, true
		e.Message += ", but the answer is not the API's: is api_url right, with its /api?"
	case status < 400:
		e.Message += ": redirected, so this is not the API: is api_url right?"
	case status == http.StatusNotFound && (!said.JSON || strings.HasPrefix(said.Message, "Cannot ")):
		// Some other server, or a path that the API does not have: it says nothing of sandboxes.
		e.Code = provider.CodeUnreachable
		e.Message += ": the API has no such path: is api_url right?"
	case status == http.StatusRequestTimeout:
		e.Code = provider.CodeTimeout
	case status == http.StatusUnprocessableEntity:
		e.Code = provider.CodeUnsupported
	case status == http.StatusForbidden && strings.Contains(said.Message, "cannot be further expanded"):
		e.Code, e.Reason = provider.CodeExhausted, provider.ReasonQuota // the disk of a sandbox to be recovered
	case status == http.StatusForbidden && strings.Contains(strings.ToLower(said.Message), "region"):
		e.Code = provider.CodeInvalid // target names one that the organization may not use
	case status == http.StatusBadRequest:
		readRefusal(e, said.Message)
	}
	return e
}

// saysStartError begins a refusal to create although the sandbox is there: broken, and with the name.
const saysStartError = "Sandbox failed to start"

// readRefusal reads a 400, with which the API answers wrong requests, wrong states, used-up quotas and full machines
// alike: only the words differ.
func readRefusal(e *provider.Error, said string) {
	switch {
	case strings.Contains(said, "No available runners"):
		e.Code, e.Reason, e.Retryable = provider.CodeExhausted, "NO_CAPACITY", true
	case strings.HasPrefix(said, "Total ") && strings.Contains(said, " limit exceeded"):
		e.Code, e.Reason = provider.CodeExhausted, provider.ReasonQuota
	case strings.HasPrefix(said, saysStartError):
		e.Code, e.Reason = provider.CodeFailed, cloud.ReasonUnclear
	case strings.HasPrefix(said, "Sandbox is "):
		e.Code = provider.CodeState
	}
}

// retryAfter reads how long to wait. The cloud has a counter for each kind of call, whose name it hangs on the header.
func retryAfter(header http.Header) time.Duration {
	longest := cloud.RetryAfter(header)
	for name, values := range header {
		for _, value := range values {
			if seconds, err := strconv.Atoi(value); err == nil && strings.HasPrefix(name, "Retry-After-") && name != "Retry-After-Ms" {
				longest = max(longest, time.Duration(min(seconds, 1<<20))*time.Second)
			}
		}
	}
	return longest
}

// passes reports whether the next look at a sandbox may show that a call which failed has worked, or may be made again.
func passes(err error) bool {
	e := provider.AsError(err)
	return cloud.MayHaveWorked(e) || e.Retryable || e.Code == provider.CodeState
}
