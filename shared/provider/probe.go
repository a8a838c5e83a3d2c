package provider

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"
)

const (
	defaultProbeTimeout = 5 * time.Second
	probeBodyLimit      = 64 << 10
)

// NewProbeClient returns an HTTP client for Probe. It keeps connections alive and never follows a redirect, because a
// login page answers 200. All pings of a plugin should share one.
func NewProbeClient() *http.Client {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.MaxIdleConnsPerHost = 2
	return &http.Client{Transport: transport, CheckRedirect: refuseRedirects}
}

func refuseRedirects(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

// Probe requests a server's health path once and classifies the answer the same way for every provider:
//
//	no connection, reset, EOF, timeout, TLS handshake failure   not yet
//	404, 408, 425, 429, any 5xx, any other 4xx                  not yet
//	2xx without the JSON fields asked for                       not yet
//	401, 403, any redirect                                      denied
//	2xx                                                         alive
//
// A provider adds what only it knows, such as its proxy's own codes and whether the process still runs. client should
// come from NewProbeClient. The probe ends after check.Timeout or with ctx.
func Probe(ctx context.Context, client *http.Client, endpoint Endpoint, check HealthCheck) PingResult {
	timeout := check.Timeout
	if timeout <= 0 {
		timeout = defaultProbeTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()

	paths := check.Paths
	if len(paths) == 0 {
		paths = []string{"/"}
	}
	var result PingResult
	for _, path := range paths {
		var status int
		result, status = probePath(ctx, client, endpoint, path, check.JSONFields)
		if status != http.StatusNotFound {
			break
		}
	}
	return result
}

// probePath also returns the HTTP status, 0 without an answer.
func probePath(ctx context.Context, client *http.Client, endpoint Endpoint, path string, fields map[string]string) (PingResult, int) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, endpoint.URL+path, nil)
	if err != nil {
		return notYet("GET %s: the URL is malformed", path), 0
	}
	for name, value := range endpoint.Headers {
		request.Header.Set(name, value)
	}
	response, err := client.Do(request)
	if err != nil {
		return notYet("GET %s: %s", path, connectionProblem(err)), 0
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, probeBodyLimit))
	status := response.StatusCode
	switch {
	case status == http.StatusUnauthorized || status == http.StatusForbidden:
		return denied("GET %s: %s", path, response.Status), status
	case status >= 300 && status < 400:
		return denied("GET %s: %s: redirected, probably to a login page", path, response.Status), status
	case status < 200 || status >= 400:
		return notYet("GET %s: %s", path, response.Status), status
	case err != nil:
		return notYet("GET %s: %s, but the answer broke off", path, response.Status), status
	}
	if problem := missingFields(body, fields); problem != "" {
		return notYet("GET %s: %s, but %s", path, response.Status, problem), status
	}
	return PingResult{Status: PingAlive, Reason: fmt.Sprintf("GET %s: %s", path, response.Status)}, status
}

func notYet(format string, args ...any) PingResult {
	return PingResult{Status: PingNotYet, Reason: fmt.Sprintf(format, args...)}
}

func denied(format string, args ...any) PingResult {
	return PingResult{Status: PingDenied, Reason: fmt.Sprintf(format, args...)}
}

// connectionProblem describes a transport error without the URL, which may carry a token.
func connectionProblem(err error) string {
	var wrapped *url.Error
	if errors.As(err, &wrapped) {
		err = wrapped.Err
	}
	var network net.Error
	var certificate *tls.CertificateVerificationError
	switch {
	case errors.As(err, &certificate):
		return "the certificate is not trusted: " + certificate.Err.Error()
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &network) && network.Timeout():
		return "no answer in time"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "the connection was closed without an answer"
	}
	return err.Error()
}

// missingFields describes which of the fields a JSON answer lacks.
func missingFields(body []byte, want map[string]string) string {
	if len(want) == 0 {
		return ""
	}
	var answer map[string]any
	if err := json.Unmarshal(body, &answer); err != nil {
		return "the answer is not a JSON object"
	}
	var problems []string
	for name, value := range want {
		if got := fmt.Sprint(answer[name]); got != value {
			problems = append(problems, fmt.Sprintf("%q is %.40q instead of %q", name, got, value))
		}
	}
	return strings.Join(problems, ", ")
}
