package main

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/berth-dev/berth/shared/provider"
)

var discard = hclog.NewNullLogger()

// answering gives a provider whose control API always answers this.
func answering(t *testing.T, handler http.HandlerFunc, changes ...func(*times)) *E2B {
	t.Helper()
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	times := quick
	for _, change := range changes {
		change(&times)
	}
	p := newE2B(Config{APIKey: canary, Domain: "e2b.app", APIURL: server.URL, Template: "base"}, discard, times)
	t.Cleanup(func() { p.Close() })
	return p
}

func TestAnswersOfTheControlAPIAreClassified(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		status    int
		headers   map[string]string
		body      string
		code      provider.Code
		reason    string
		retryable bool
		after     time.Duration
		calls     int
	}{
		"bad request":     {status: 400, body: `{"code":400,"message":"validation error: x"}`, code: provider.CodeInvalid, calls: 1},
		"no key":          {status: 401, body: `{"code":401,"message":"authorization header is missing"}`, code: provider.CodeDenied, calls: 1},
		"forbidden":       {status: 403, body: `{"code":403,"message":"team is blocked"}`, code: provider.CodeDenied, calls: 1},
		"no such sandbox": {status: 404, body: `{"code":404,"message":"Sandbox \"i1\" doesn't exist"}`, code: provider.CodeNotFound, reason: provider.ReasonGone, calls: 1},
		"no such route":   {status: 404, body: `{"code":404,"message":"validation error: no matching operation was found"}`, code: provider.CodeUnreachable, calls: 1},
		"another server":  {status: 404, body: `<html>not found</html>`, code: provider.CodeUnreachable, calls: 1},
		"wrong state":     {status: 409, body: `{"code":409,"message":"is being killed"}`, code: provider.CodeState, calls: 1},
		"rate limit": {
			status: 429, headers: map[string]string{"Retry-After": "7"}, body: `{"code":429,"message":"Rate limit exceeded"}`,
			code: provider.CodeExhausted, reason: provider.ReasonRateLimit, retryable: true, after: 7 * time.Second, calls: 1, // longer than is waited for
		},
		"rate limit at the edge": {status: 429, body: `slow down`, code: provider.CodeExhausted, reason: provider.ReasonRateLimit, retryable: true, calls: 4},
		"too many sandboxes": {
			status: 429, body: `{"code":429,"message":"you have reached the maximum number of concurrent E2B sandboxes (20)"}`,
			code: provider.CodeExhausted, reason: provider.ReasonQuota, calls: 1,
		},
		"server error":     {status: 500, body: `{"code":500,"message":"internal"}`, code: provider.CodeUnreachable, retryable: true, calls: 4},
		"no capacity":      {status: 503, body: `{"code":503,"message":"no","error_code":"sandbox_capacity_unavailable"}`, code: provider.CodeUnreachable, reason: "SANDBOX_CAPACITY_UNAVAILABLE", retryable: true, calls: 4},
		"gateway":          {status: 504, body: `upstream request timeout`, code: provider.CodeUnreachable, retryable: true, calls: 4},
		"nginx":            {status: 502, body: `<html>502</html>`, code: provider.CodeUnreachable, retryable: true, calls: 4},
		"not JSON":         {status: 200, body: `<html>sign in</html>`, code: provider.CodeUnreachable, retryable: true, calls: 4},
		"another document": {status: 200, body: `{"hello":"world"}`, code: provider.CodeUnreachable, retryable: true, calls: 1},
		"empty":            {status: 200, body: ``, code: provider.CodeUnreachable, retryable: true, calls: 4},
		"a redirect":       {status: 307, headers: map[string]string{"Location": "/login"}, code: provider.CodeUnreachable, calls: 1},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			calls := 0
			p := answering(t, func(w http.ResponseWriter, _ *http.Request) {
				calls++
				for name, value := range test.headers {
					w.Header().Set(name, value)
				}
				w.WriteHeader(test.status)
				fmt.Fprint(w, test.body)
			})
			e := wantCode(t, second(p.api.get(t.Context(), "i1")), test.code)
			if e.Reason != test.reason || e.Retryable != test.retryable || e.RetryAfter != test.after || calls != test.calls {
				t.Errorf("reason %q, retryable %v, after %s, %d calls: %v", e.Reason, e.Retryable, e.RetryAfter, calls, e)
			}
		})
	}
}

func TestAnAnswerThatEchoesTheKeyIsNotRepeated(t *testing.T) {
	t.Parallel()
	p := answering(t, func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusUnauthorized)
		fmt.Fprintf(w, `{"code":401,"message":"Invalid API key, please visit us.\n%s is not a key, %s"}`, r.Header.Get("X-Api-Key"), strings.Repeat("really ", 100))
	})
	e := wantCode(t, second(p.Attach(t.Context(), attachRequest("s1"))), provider.CodeDenied)
	if strings.Contains(e.Message, canary[:20]) || strings.Contains(e.Message, "\n") || len(e.Message) > 500 {
		t.Errorf("message: %s", e.Message)
	}
}

func TestACallEndsWithItsContextAndSaysWhy(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	hang := func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-r.Context().Done():
		case <-release:
		}
	}
	defer close(release)
	p := answering(t, hang)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	wantCode(t, second(p.api.get(ctx, "i1")), provider.CodeTimeout)
	ctx, cancel = context.WithCancel(t.Context())
	time.AfterFunc(20*time.Millisecond, cancel)
	wantCode(t, second(p.api.get(ctx, "i1")), provider.CodeCanceled)

	impatient := answering(t, hang, func(t *times) { t.call = 20 * time.Millisecond })
	if e := wantCode(t, second(impatient.api.get(t.Context(), "i1")), provider.CodeUnreachable); !strings.Contains(e.Message, "did not answer within 20ms") {
		t.Errorf("message: %v", e)
	}
}

func TestARateLimitIsWaitedFor(t *testing.T) {
	t.Parallel()
	calls := 0
	p := answering(t, func(w http.ResponseWriter, _ *http.Request) {
		if calls++; calls == 1 {
			w.Header().Set("Retry-After", "1")
			w.WriteHeader(http.StatusTooManyRequests)
			return
		}
		fmt.Fprint(w, `{"sandboxID":"i1","state":"running"}`)
	})
	began := time.Now()
	if _, err := p.api.get(t.Context(), "i1"); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took < time.Second {
		t.Errorf("it took %s, and E2B asked for a second", took)
	}
}

func TestAnUnreachableAPIIsNotTakenForAMissingSandbox(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(nil)
	server.Close()
	p := newE2B(Config{APIKey: canary, Domain: "e2b.app", APIURL: server.URL, Template: "base"}, discard, quick)
	defer p.Close()
	wantCode(t, second(p.Attach(t.Context(), attachRequest("s1"))), provider.CodeUnreachable)
	wantCode(t, p.Destroy(t.Context(), provider.SandboxRef{Owner: owner, SandboxID: "i1"}), provider.CodeUnreachable)
}

func TestAListingThatDoesNotEndIsGivenUp(t *testing.T) {
	t.Parallel()
	p := answering(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("X-Next-Token", "again")
		fmt.Fprint(w, "[]")
	})
	_, err := p.List(t.Context(), provider.ListRequest{Owner: owner})
	wantCode(t, err, provider.CodeUnreachable)
}

func TestWhatIsNoSandboxIDIsNotSentAnywhere(t *testing.T) {
	t.Parallel()
	p := answering(t, func(_ http.ResponseWriter, r *http.Request) { t.Errorf("%s %s", r.Method, r.URL) })
	for _, id := range []string{"", "../teams", "I1", "i1.evil.example", "i1/x"} {
		bad := provider.SandboxRef{Owner: owner, SandboxID: id}
		wantCode(t, p.Destroy(t.Context(), bad), provider.CodeInvalid)
		wantCode(t, second(p.StartServer(t.Context(), provider.StartServerRequest{Owner: owner, SandboxID: id})), provider.CodeInvalid)
		wantCode(t, second(p.Ping(t.Context(), provider.PingRequest{Owner: owner, SandboxID: id})), provider.CodeInvalid)
	}
}

func TestAConfigurationThatCannotWorkIsRefusedByField(t *testing.T) {
	t.Parallel()
	good := func() Config { return Config{APIKey: canary, Domain: "e2b.app", Template: "base"} }
	for want, spoil := range map[string]func(*Config){
		"api_key":     func(c *Config) { c.APIKey = "e2b_x\n" },
		"domain":      func(c *Config) { c.Domain = "https://e2b.app" },
		"api_url":     func(c *Config) { c.APIURL = "api.e2b.app" },
		"sandbox_url": func(c *Config) { c.SandboxURL = "https://user:pass@x.example" },
	} {
		config := good()
		spoil(&config)
		e := wantCode(t, second(open(t.Context(), config, discard)), provider.CodeInvalid)
		if len(e.Fields) != 1 || e.Fields[0].Field != want || strings.Contains(e.Error(), "e2b_") {
			t.Errorf("%s: %v", want, e)
		}
	}
	p, err := open(t.Context(), good(), discard)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if p.config.APIURL != "https://api.e2b.app" {
		t.Errorf("api_url: %s", p.config.APIURL)
	}
}
