package provider

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"mime"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

const (
	defaultProbeTimeout = 5 * time.Second
	// fieldsLimit is the most that is read of an answer in which fields are looked for.
	fieldsLimit = 1 << 20
	// refusalLimit is the most that is read of an answer which is not a success, refusalTime how long that may take, and
	// refusalShown how much of it is shown.
	refusalLimit = 4 << 10
	refusalTime  = 500 * time.Millisecond
	refusalShown = 200
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
// Unless there are fields to look for, the status decides and the body is not read: it may be a stream without end. The reason
// quotes what a server says that refuses, without the endpoint's headers should it repeat them. A provider adds what only it knows, such as its proxy's own codes and whether the process still runs. client should
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
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
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
	status := response.StatusCode
	word := oneLine(response.Status, refusalShown)
	switch {
	case status >= 300 && status < 400:
		return denied("GET %s: %s%s", path, word, target(response)), status
	case status == http.StatusUnauthorized || status == http.StatusForbidden:
		return denied("GET %s: %s%s", path, word, refusal(response, endpoint, cancel)), status
	case status < 200 || status >= 400:
		return notYet("GET %s: %s%s", path, word, refusal(response, endpoint, cancel)), status
	}
	if problem := missingFields(response, fields); problem != "" {
		return notYet("GET %s: %s, but %s", path, word, problem), status
	}
	return PingResult{Status: PingAlive, Reason: fmt.Sprintf("GET %s: %s", path, word)}, status
}

// target words where an answer redirects to, without what may be secret in a URL.
func target(response *http.Response) string {
	location := response.Header.Get("Location")
	to, err := url.Parse(location)
	if location == "" || err != nil {
		return ", which does not say where to"
	}
	more := ""
	if to.RawQuery != "" || to.Fragment != "" {
		more = "?..."
	}
	here := to.Host == "" || to.Host == response.Request.URL.Host
	to.User, to.RawQuery, to.ForceQuery, to.Fragment, to.RawFragment = nil, "", false, "", ""
	advice := "that may be a login page"
	if here && to.Path != "" && more == "" {
		advice = "if the server is healthy there, give " + oneLine(to.Path, refusalShown) + " as the health path"
	}
	return fmt.Sprintf(" to %s%s, which is not followed: %s", oneLine(to.String(), refusalShown), more, advice)
}

// refusal quotes the beginning of an answer that is not a success. cancel ends the request.
func refusal(response *http.Response, endpoint Endpoint, cancel context.CancelFunc) string {
	timer := time.AfterFunc(refusalTime, cancel)
	defer timer.Stop()
	body, _ := io.ReadAll(io.LimitReader(response.Body, refusalLimit)) // what came of it
	text := string(body)
	for _, value := range endpoint.Headers {
		if _, secret, found := strings.Cut(value, " "); found {
			text = hide(text, secret)
		}
		text = hide(text, value)
	}
	kind, _, _ := mime.ParseMediaType(response.Header.Get("Content-Type"))
	if strings.Contains(kind, "html") || strings.HasPrefix(strings.TrimSpace(text), "<") {
		return "" // a page for people, whose words are the status
	}
	if text = oneLine(text, refusalShown); text == "" {
		return ""
	}
	return ": " + text
}

// hide takes a secret out of a text. What has fewer than 8 characters is taken for no secret.
func hide(text, secret string) string {
	if len(secret) < 8 {
		return text
	}
	return strings.ReplaceAll(text, secret, "...")
}

// oneLine makes one line of a foreign text that can be printed, and cuts it.
func oneLine(text string, most int) string {
	text = strings.Join(strings.FieldsFunc(text, func(r rune) bool { return r == utf8.RuneError || !unicode.IsGraphic(r) || unicode.IsSpace(r) }), " ")
	return Shorten(text, most)
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
		return "the certificate is not trusted: " + oneLine(certificate.Err.Error(), 2*refusalShown)
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &network) && network.Timeout():
		return "no answer in time"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "the connection was closed without an answer"
	}
	return oneLine(err.Error(), 2*refusalShown)
}

// missingFields describes which of the fields a JSON answer lacks. Only with fields to look for does it read the answer.
func missingFields(response *http.Response, want map[string]string) string {
	if len(want) == 0 {
		return ""
	}
	body, err := io.ReadAll(io.LimitReader(response.Body, fieldsLimit+1))
	var answer map[string]any
	switch {
	case len(body) > fieldsLimit:
		return fmt.Sprintf("the answer is longer than the %d KiB that berth reads to look for fields: name a health path that answers briefly, or "+
			"ask for no fields", fieldsLimit>>10)
	case errors.Is(err, context.DeadlineExceeded):
		return "the answer did not end in time, and has fields to be looked for"
	case err != nil:
		return "the answer broke off"
	case response.Header.Get("Content-Encoding") != "": // the client decodes what it has asked for, and takes this away
		return fmt.Sprintf("the answer is encoded as %s, which was not asked for", oneLine(response.Header.Get("Content-Encoding"), refusalShown))
	case json.Unmarshal(body, &answer) != nil:
		return "the answer is not a JSON object"
	}
	var problems []string
	for _, name := range slices.Sorted(maps.Keys(want)) {
		if got := fmt.Sprint(answer[name]); got != want[name] {
			problems = append(problems, fmt.Sprintf("%q is %q instead of %q", name, Shorten(got, 40), want[name]))
		}
	}
	return strings.Join(problems, ", ")
}
