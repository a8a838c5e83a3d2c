package cloudtest

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/berth-dev/berth/plugins/internal/simcloud"
	"github.com/berth-dev/berth/shared/provider"
)

func testConfigurations(f *fixture) {
	for configuration, want := range f.cloud.Configurations {
		plugin, err := f.cloud.Open(configuration)
		var refused []string
		if err != nil {
			for _, field := range provider.AsError(err).Fields {
				refused = append(refused, field.Field)
			}
		} else if err := plugin.Close(); err != nil {
			f.Error(err)
		}
		if got := strings.Join(refused, " "); got != want || (err == nil) != (want == "") {
			f.Errorf("%s: refused %q, want %q: %v", configuration, got, want, err)
		}
	}
}

// Answer is a fault that answers with a status, in the forms of most clouds' JSON.
func Answer(status int, message string, headers ...string) simcloud.Fault {
	fault := simcloud.Fault{
		Status: status, Headers: map[string]string{"Content-Type": "application/json"},
		Body: fmt.Sprintf(`{"statusCode":%d,"code":%d,"message":%q}`, status, status, message),
	}
	for i := 0; i < len(headers); i += 2 {
		fault.Headers[headers[i]] = headers[i+1]
	}
	return fault
}

// page is an answer that is not the API's.
func page() simcloud.Fault {
	return simcloud.Fault{Status: http.StatusOK, Body: "<html></html>", Headers: map[string]string{"Content-Type": "text/html"}}
}

func testFailedLookUp(f *fixture) {
	f.start(Options{})
	elsewhere := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		f.Errorf("followed to %s with %v", r.URL, r.Header)
	}))
	defer elsewhere.Close()
	for name, test := range map[string]struct {
		fault simcloud.Fault
		code  provider.Code
	}{
		"500":           {Answer(500, "oops"), provider.CodeUnreachable},
		"401":           {Answer(401, "who?"), provider.CodeDenied},
		"403":           {Answer(403, "no"), provider.CodeDenied},
		"dropped":       {simcloud.Fault{Drop: true}, provider.CodeUnreachable},
		"a page":        {page(), provider.CodeUnreachable},
		"a redirection": {Answer(307, "", "Location", elsewhere.URL), provider.CodeUnreachable},
	} {
		test.fault.Operation = f.cloud.LookUp
		fault := f.inject(test.fault)
		for call, err := range map[string]error{
			"Attach": Err(f.open(Brisk).Attach(f.Context(), AttachRequest("s1"))),
			"Create": Err(f.open(Brisk).Create(f.Context(), CreateRequest("s1"))),
		} {
			if provider.CodeOf(err) != test.code && (call == "Attach" || err != nil) {
				f.Errorf("%s, %s: %v", name, call, err)
			}
		}
		fault.Remove()
		for _, sandbox := range f.Sandboxes() { // of a cloud that creates without looking
			f.End(sandbox.ID)
		}
	}
}

func testRateLimit(f *fixture) {
	p := f.start(Options{})
	sandbox := Create(f.T, p, "s1")
	limit := func(seconds string, count int) {
		fault := Answer(429, "Too Many Requests", "Retry-After", seconds)
		fault.Operation, fault.Count = f.cloud.LookUp, count
		f.inject(fault)
	}
	limit("1", 1)
	began := time.Now()
	if found := Attach(f.T, p, "s1"); found.ID != sandbox.ID || time.Since(began) < time.Second {
		f.Errorf("found %s after %s: the cloud asked for a second", found.ID, time.Since(began))
	}
	limit("600", 0)
	began = time.Now()
	e := WantCode(f.T, Err(p.Attach(f.Context(), AttachRequest("s1"))), provider.CodeExhausted)
	if e.Reason != provider.ReasonRateLimit || e.RetryAfter != 10*time.Minute || !e.Retryable || time.Since(began) > 20*time.Second {
		f.Errorf("after %s: %+v", time.Since(began), e)
	}
}

func testErrors(f *fixture) {
	for i, test := range f.cloud.Errors {
		f.Run(fmt.Sprint(i, test.Fault.Status, test.Fault.Code, test.Want.Message), func(t *testing.T) {
			t.Parallel()
			f := f.with(t)
			p := f.start(Options{})
			f.inject(test.Fault)
			err := Err(p.Attach(t.Context(), AttachRequest("s1")))
			if test.Fault.Operation == f.cloud.Create {
				err = Err(p.Create(t.Context(), CreateRequest("s1")))
			}
			e, want := provider.AsError(err), test.Want
			if e == nil || e.Code != want.Code || e.Reason != want.Reason || e.Retryable != want.Retryable || e.RetryAfter != want.RetryAfter ||
				!strings.Contains(e.Message, want.Message) || strings.Contains(e.Message, "\n") || len(e.Message) > 600 {
				t.Errorf("%+v", e)
			}
		})
	}
}

// testSecret looks at everything that leaves the plugin, on good days and bad.
func testSecret(f *fixture) {
	p := f.start(Options{})
	sandbox, endpoints := Up(f.T, p, "s1")
	secret := f.cloud.Secret
	p = f.open(Curt)
	said := []string{fmt.Sprint(sandbox, endpoints), f.inside(sandbox.ID, "cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline; cat /tmp/.berth/* ~/.berth/*")}
	echo := secret + " is not a key.\n" + strings.Repeat("Really. ", 200)
	f.inject(simcloud.Fault{Operation: f.cloud.Port, Status: 500, Body: "oops"}) // a server is never told the secret, so it cannot repeat it
	faults := []simcloud.Fault{Answer(401, echo), {Status: 500, Body: echo}, {Drop: true}, Answer(302, "", "Location", "/login?key="+secret)}
	for _, fault := range faults {
		injected := f.inject(fault)
		_, attach := p.Attach(f.Context(), AttachRequest("s1"))
		_, start := p.StartServer(f.Context(), StartRequest(sandbox, ActionServer()))
		_, logs := p.(provider.LogReader).Logs(f.Context(), provider.LogsRequest{SandboxRef: Ref(sandbox), Lines: 3})
		said = append(said, fmt.Sprint(attach, start, logs, Ping(f.T, p, sandbox, endpoints)))
		injected.Remove()
		if e := provider.AsError(attach); e == nil || strings.Contains(e.Message, "\n") || len(e.Message) > 600 {
			f.Errorf("%+v", e)
		}
	}
	for _, text := range said {
		if strings.Contains(text, secret) || strings.Contains(text, secret[4:len(secret)-2]) {
			f.Errorf("the secret is in %s", text)
		}
	}
	if err := p.(provider.Destroyer).Destroy(f.Context(), Ref(sandbox)); err != nil {
		f.Error(err)
	}
	f.checkCalls()
}

// checkCalls checks that the secret was sent in its header only, and to the API only.
func (f *fixture) checkCalls() {
	f.Helper()
	met := 0
	for _, call := range f.Traffic.Calls() {
		if len(call.Headers[f.cloud.SecretHeader]) > 0 && strings.Contains(call.Headers[f.cloud.SecretHeader][0], f.cloud.Secret) {
			met++
			delete(call.Headers, f.cloud.SecretHeader)
			if slices.Contains(f.cloud.Keyless, call.Operation) {
				f.Errorf("%s: the secret was sent to a sandbox", call.Path)
			}
		}
		path, err := url.QueryUnescape(call.Path)
		if text := fmt.Sprint(call.Headers, path, call.Body); strings.Contains(text, f.cloud.Secret) || err != nil {
			f.Errorf("%s: the secret is somewhere else than in its header, or %v", call.Operation, err)
		}
		if strings.Contains(fmt.Sprint(call.Headers, path), serverSecret) && call.Operation != f.cloud.Port {
			f.Errorf("%s: the server's secret is in its path or headers", call.Operation)
		}
	}
	if met == 0 {
		f.Error("the secret was never sent: this test looks in the wrong place")
	}
}

// typed returns the plugin's error, which is nil if err is anything else.
func typed(err error) *provider.Error {
	var e *provider.Error
	errors.As(err, &e)
	return e
}
