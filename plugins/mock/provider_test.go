package main

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/go-hclog"
	"go.uber.org/goleak"

	"github.com/berth-dev/berth/internal/testbin"
	"github.com/berth-dev/berth/shared/provider"
)

// patience is how long a test waits for what should happen soon. The machine may be slow.
const patience = 30 * time.Second

// The plugin offers every optional call.
var (
	_ provider.Lister    = (*faulty)(nil)
	_ provider.Renewer   = (*faulty)(nil)
	_ provider.Suspender = (*faulty)(nil)
	_ provider.Destroyer = (*faulty)(nil)
	_ provider.LogReader = (*faulty)(nil)
	_ io.Closer          = (*faulty)(nil)
)

func TestMain(m *testing.M) {
	code := testbin.Main(m)
	http.DefaultClient.CloseIdleConnections()
	if err := goleak.Find(); err != nil && code == 0 {
		println(err.Error())
		code = 1
	}
	os.Exit(code)
}

// attributes is a configuration as a user writes it.
type attributes map[string]any

// configure opens the provider the way the SDK does.
func configure(t *testing.T, a attributes) (*faulty, error) {
	t.Helper()
	text, err := json.Marshal(a)
	if err != nil {
		t.Fatal(err)
	}
	config, err := provider.DecodeConfig[Config](text)
	if err != nil {
		return nil, err
	}
	return open(t.Context(), config, hclog.NewNullLogger())
}

func mustConfigure(t *testing.T, a attributes) *faulty {
	t.Helper()
	f, err := configure(t, a)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	return f
}

func createRequest(session string) provider.CreateRequest {
	return provider.CreateRequest{
		Session: session, Owner: "me", Attempt: "a-" + session, Labels: map[string]string{"team": "x"}, Lifetime: time.Hour,
	}
}

func mustCreate(t *testing.T, f *faulty, session string) provider.Sandbox {
	t.Helper()
	s, err := f.Create(t.Context(), createRequest(session))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func attach(t *testing.T, f *faulty, session, id string) (provider.Sandbox, error) {
	return f.Attach(t.Context(), provider.AttachRequest{Session: session, Owner: "me", SandboxID: id, Lifetime: time.Hour})
}

var healthCheck = provider.HealthCheck{
	Paths: []string{"/alive"}, JSONFields: map[string]string{"status": "fine"}, Timeout: patience,
}

func start(t *testing.T, f *faulty, id string) (provider.Endpoints, error) {
	return f.StartServer(t.Context(), provider.StartServerRequest{
		Owner: "me", SandboxID: id,
		Server: provider.Server{Port: 4444, Health: healthCheck, ExtraPorts: map[string]int{"vs code": 4445}},
	})
}

func mustStart(t *testing.T, f *faulty, id string) provider.Endpoints {
	t.Helper()
	endpoints, err := start(t, f, id)
	if err != nil {
		t.Fatal(err)
	}
	return endpoints
}

func ping(t *testing.T, f *faulty, id string, endpoint provider.Endpoint) (provider.PingResult, error) {
	return f.Ping(t.Context(), provider.PingRequest{Owner: "me", SandboxID: id, Endpoint: endpoint, Health: healthCheck})
}

func mustPing(t *testing.T, f *faulty, id string, endpoint provider.Endpoint, want provider.PingStatus) provider.PingResult {
	t.Helper()
	result, err := ping(t, f, id, endpoint)
	if err != nil || result.Status != want || result.Reason == "" {
		t.Fatalf("ping: %+v, %v, want %s", result, err, want)
	}
	return result
}

func list(t *testing.T, f *faulty, owner string) (ids []string) {
	t.Helper()
	sandboxes, err := f.List(t.Context(), provider.ListRequest{Owner: owner})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range sandboxes {
		ids = append(ids, s.ID)
	}
	return ids
}

func mine(id string) provider.SandboxRef { return provider.SandboxRef{Owner: "me", SandboxID: id} }

func wantError(t *testing.T, err error, code provider.Code, reason string) *provider.Error {
	t.Helper()
	var e *provider.Error
	if !errors.As(err, &e) || e.Code != code || e.Reason != reason || e.Message == "" {
		t.Fatalf("error %#v, want %s %s", err, code, reason)
	}
	return e
}

// eventually waits for a condition.
func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !condition(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not in time: %s", what)
		}
	}
}

func TestCreateMakesALabelledSandboxAndAdoptsItTheNextTime(t *testing.T) {
	t.Parallel()
	f := mustConfigure(t, attributes{"size": "large"})
	first := mustCreate(t, f, "s1")
	labels := map[string]string{
		"team": "x", provider.LabelOwner: "me", provider.LabelSession: "s1", provider.LabelAttempt: "a-s1",
	}
	if diff := cmp.Diff(labels, first.Labels); diff != "" {
		t.Error(diff)
	}
	if first.Origin != provider.OriginCreated || first.State != provider.StateRunning || first.Detail != "running, large" {
		t.Errorf("%+v", first)
	}
	if left := time.Until(first.ExpiresAt); left > time.Hour || left < time.Hour-patience {
		t.Errorf("it lives for %s", left)
	}
	again := createRequest("s1")
	again.Attempt = "another"
	second, err := f.Create(t.Context(), again)
	if err != nil || second.ID != first.ID || second.Origin != provider.OriginAttached || second.Attempt != "a-s1" {
		t.Errorf("%+v, %v", second, err)
	}
	other := again
	other.Owner = "somebody else"
	third, err := f.Create(t.Context(), other)
	if err != nil || third.ID == first.ID || third.Origin != provider.OriginCreated {
		t.Errorf("%+v, %v", third, err)
	}
	if diff := cmp.Diff([]string{first.ID}, list(t, f, "me")); diff != "" {
		t.Error(diff)
	}
}

func TestCreatingAtTheSameTimeMakesOneSandboxInMemoryAndInAFile(t *testing.T) {
	t.Parallel()
	for name, a := range map[string]attributes{"memory": {}, "file": {"state": filepath.Join(t.TempDir(), "cloud.json")}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			providers := []*faulty{mustConfigure(t, a)}
			if name == "file" {
				providers = append(providers, mustConfigure(t, a))
			}
			var group sync.WaitGroup
			made := make(chan provider.Origin, 40)
			for i := range cap(made) {
				group.Go(func() {
					s, err := providers[i%len(providers)].Create(t.Context(), createRequest("s1"))
					if err != nil {
						t.Error(err)
					}
					made <- s.Origin
				})
			}
			group.Wait()
			close(made)
			created := 0
			for origin := range made {
				if origin == provider.OriginCreated {
					created++
				}
			}
			if ids := list(t, providers[0], "me"); created != 1 || len(ids) != 1 {
				t.Errorf("%d created, %v listed", created, ids)
			}
		})
	}
}

func TestAttachTellsMissingGoneForeignRunningAndSuspendedApart(t *testing.T) {
	t.Parallel()
	f := mustConfigure(t, nil)
	_, err := attach(t, f, "s1", "")
	wantError(t, err, provider.CodeNotFound, "")

	made := mustCreate(t, f, "s1")
	for _, id := range []string{"", made.ID, "mock-of-old"} {
		s, err := attach(t, f, "s1", id)
		if err != nil || s.ID != made.ID || s.Origin != provider.OriginAttached || s.Endpoints == nil {
			t.Errorf("with id %q: %+v, %v", id, s, err)
		}
	}
	_, err = attach(t, f, "s2", made.ID)
	wantError(t, err, provider.CodeConflict, "")
	_, err = f.Attach(t.Context(), provider.AttachRequest{Session: "s1", Owner: "you", SandboxID: made.ID})
	wantError(t, err, provider.CodeConflict, "")

	for range 2 { // suspending twice is fine
		if err := f.Suspend(t.Context(), mine(made.ID)); err != nil {
			t.Fatal(err)
		}
	}
	s, err := attach(t, f, "s1", "")
	if err != nil || s.ID != made.ID || s.Origin != provider.OriginWoken || s.State != provider.StateRunning {
		t.Errorf("suspended: %+v, %v", s, err)
	}

	for range 2 { // so is destroying twice
		if err := f.Destroy(t.Context(), mine(made.ID)); err != nil {
			t.Fatal(err)
		}
	}
	_, err = attach(t, f, "s1", made.ID)
	if e := wantError(t, err, provider.CodeNotFound, provider.ReasonGone); e.SandboxID != made.ID {
		t.Errorf("%+v", e)
	}
	if s := mustCreate(t, f, "s1"); s.ID == made.ID || s.Origin != provider.OriginCreated {
		t.Errorf("after its end: %+v", s)
	}
}

func TestAServerIsStartedOnceAndAnswersOverHTTPWhenItIsReady(t *testing.T) {
	t.Parallel()
	f := mustConfigure(t, attributes{"ready_after": "3s"})
	s := mustCreate(t, f, "s1")
	attached, err := attach(t, f, "s1", "")
	if err != nil {
		t.Fatal(err)
	}
	mustPing(t, f, s.ID, attached.Endpoints.Server, provider.PingNotYet)

	begin := time.Now()
	endpoints := mustStart(t, f, s.ID)
	if diff := cmp.Diff(attached.Endpoints.Server, endpoints.Server); diff != "" {
		t.Error(diff)
	}
	if extra := endpoints.Extra["vs code"]; !strings.HasPrefix(extra.URL, endpoints.Server.URL+"/") {
		t.Errorf("%+v", endpoints)
	}
	mustPing(t, f, s.ID, endpoints.Server, provider.PingNotYet)
	eventually(t, "a ready server", func() bool {
		again := mustStart(t, f, s.ID) // must not start it again, or it is never ready
		result, err := ping(t, f, s.ID, again.Server)
		return err == nil && result.Status == provider.PingAlive
	})
	if took := time.Since(begin); took < 3*time.Second {
		t.Errorf("ready after %s", took)
	}

	for _, endpoint := range []provider.Endpoint{endpoints.Server, endpoints.Extra["vs code"]} {
		status, body := request(t, endpoint.URL+"/any/path", endpoint.Headers)
		if status != 200 || body["status"] != "fine" {
			t.Errorf("%d %v", status, body)
		}
		if status, _ := request(t, endpoint.URL+"/any/path", nil); status != http.StatusUnauthorized {
			t.Errorf("without the token: %d", status)
		}
	}
	mustPing(t, f, s.ID, provider.Endpoint{URL: endpoints.Server.URL}, provider.PingDenied)

	if err := f.Suspend(t.Context(), mine(s.ID)); err != nil {
		t.Fatal(err)
	}
	if status, _ := request(t, endpoints.Server.URL, endpoints.Server.Headers); status != http.StatusBadGateway {
		t.Errorf("suspended: %d", status)
	}
	mustPing(t, f, s.ID, endpoints.Server, provider.PingStopped)
	_, err = start(t, f, s.ID)
	wantError(t, err, provider.CodeState, "")
	if _, err := attach(t, f, "s1", ""); err != nil {
		t.Fatal(err)
	}
	mustPing(t, f, s.ID, endpoints.Server, provider.PingNotYet) // suspending ends all processes

	if err := f.Destroy(t.Context(), mine(s.ID)); err != nil {
		t.Fatal(err)
	}
	mustPing(t, f, s.ID, endpoints.Server, provider.PingGone)
	_, err = start(t, f, s.ID)
	wantError(t, err, provider.CodeNotFound, provider.ReasonGone)
}

func request(t *testing.T, url string, headers map[string]string) (int, map[string]string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, value := range headers {
		r.Header.Set(name, value)
	}
	response, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	var body map[string]string
	if err := json.NewDecoder(response.Body).Decode(&body); err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, body
}

func TestWithoutHTTPAPingIsAnsweredFromWhatIsKnown(t *testing.T) {
	t.Parallel()
	f := mustConfigure(t, attributes{"serve": "none", "ready_after": "100ms"})
	if f.cloud.web != nil {
		t.Error("it listens")
	}
	s := mustCreate(t, f, "s1")
	mustPing(t, f, s.ID, provider.Endpoint{}, provider.PingNotYet)
	begin := time.Now()
	endpoints := mustStart(t, f, s.ID)
	if !strings.HasPrefix(endpoints.Server.URL, "http://mock.invalid/") {
		t.Errorf("%+v", endpoints)
	}
	eventually(t, "a ready server", func() bool {
		result, err := ping(t, f, s.ID, endpoints.Server)
		return err == nil && result.Status == provider.PingAlive
	})
	if took := time.Since(begin); took < 100*time.Millisecond {
		t.Errorf("ready after %s", took)
	}
	lines, err := f.Logs(t.Context(), provider.LogsRequest{SandboxRef: mine(s.ID), Lines: 1})
	if err != nil || !slices.Equal(lines, []string{"mock server: ready"}) {
		t.Errorf("%q, %v", lines, err)
	}
}

func TestASandboxEndsWithItsLifetimeUnlessItIsRenewed(t *testing.T) {
	t.Parallel()
	f := mustConfigure(t, attributes{"serve": "none"})
	short := createRequest("short")
	short.Lifetime = 200 * time.Millisecond
	kept := mustCreate(t, f, "renewed")
	end, err := f.Renew(t.Context(), provider.RenewRequest{SandboxRef: mine(kept.ID), Lifetime: 3 * time.Hour})
	if left := time.Until(end); err != nil || left > 3*time.Hour || left < 2*time.Hour {
		t.Errorf("renewed until %s, %v", end, err)
	}
	if again, err := attach(t, f, "renewed", ""); err != nil || !again.ExpiresAt.Equal(end) {
		t.Errorf("%+v, %v", again, err)
	}

	s, err := f.Create(t.Context(), short)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the end of its life", func() bool {
		_, err := attach(t, f, "short", "")
		return provider.CodeOf(err) == provider.CodeNotFound
	})
	if diff := cmp.Diff([]string{kept.ID}, list(t, f, "me")); diff != "" {
		t.Error(diff)
	}
	mustPing(t, f, s.ID, provider.Endpoint{}, provider.PingGone)
	_, err = f.Renew(t.Context(), provider.RenewRequest{SandboxRef: mine(s.ID), Lifetime: time.Hour})
	wantError(t, err, provider.CodeNotFound, provider.ReasonGone)
	_, err = f.Renew(t.Context(), provider.RenewRequest{SandboxRef: mine(kept.ID)})
	wantError(t, err, provider.CodeInvalid, "")
}

func TestWakingArmsTheLifetimeAnew(t *testing.T) {
	t.Parallel()
	f := mustConfigure(t, nil)
	made := mustCreate(t, f, "s1")
	if err := f.Suspend(t.Context(), mine(made.ID)); err != nil {
		t.Fatal(err)
	}
	listed, err := f.List(t.Context(), provider.ListRequest{Owner: "me", Session: "s1"})
	if err != nil || len(listed) != 1 || listed[0].State != provider.StateSuspended {
		t.Errorf("%+v, %v", listed, err)
	}
	woken, err := f.Attach(t.Context(), provider.AttachRequest{Session: "s1", Owner: "me", Lifetime: 5 * time.Hour})
	if err != nil || time.Until(woken.ExpiresAt) < 4*time.Hour {
		t.Errorf("%+v, %v", woken, err)
	}
}

func TestAnotherOwnersSandboxIsRefusedEverywhere(t *testing.T) {
	t.Parallel()
	f := mustConfigure(t, nil)
	s := mustCreate(t, f, "s1")
	theirs := provider.SandboxRef{Owner: "you", SandboxID: s.ID}
	for name, call := range map[string]func(context.Context) error{
		"start": func(ctx context.Context) error {
			_, err := f.StartServer(ctx, provider.StartServerRequest{Session: "s1", Owner: "you", SandboxID: s.ID})
			return err
		},
		"ping": func(ctx context.Context) error {
			_, err := f.Ping(ctx, provider.PingRequest{Session: "s1", Owner: "you", SandboxID: s.ID})
			return err
		},
		"renew": func(ctx context.Context) error {
			_, err := f.Renew(ctx, provider.RenewRequest{SandboxRef: theirs, Lifetime: time.Hour})
			return err
		},
		"suspend": func(ctx context.Context) error { return f.Suspend(ctx, theirs) },
		"destroy": func(ctx context.Context) error { return f.Destroy(ctx, theirs) },
		"logs": func(ctx context.Context) error {
			_, err := f.Logs(ctx, provider.LogsRequest{SandboxRef: theirs, Lines: 1})
			return err
		},
	} {
		if e := wantError(t, call(t.Context()), provider.CodeConflict, ""); e.SandboxID != s.ID {
			t.Errorf("%s: %+v", name, e)
		}
	}
	if ids := list(t, f, "you"); len(ids) != 0 {
		t.Errorf("listed: %v", ids)
	}
	if s, err := attach(t, f, "s1", ""); err != nil || s.Origin != provider.OriginAttached {
		t.Errorf("afterwards: %+v, %v", s, err)
	}
}

func TestTheQuotaCountsLivingSandboxesOfAllOwners(t *testing.T) {
	t.Parallel()
	f := mustConfigure(t, attributes{"quota": 2})
	mustCreate(t, f, "s1")
	other := createRequest("s1")
	other.Owner = "you"
	theirs, err := f.Create(t.Context(), other)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.Create(t.Context(), createRequest("s2"))
	wantError(t, err, provider.CodeExhausted, provider.ReasonQuota)
	mustCreate(t, f, "s1") // attaching needs no free place
	if err := f.Destroy(t.Context(), provider.SandboxRef{Owner: "you", SandboxID: theirs.ID}); err != nil {
		t.Fatal(err)
	}
	mustCreate(t, f, "s2")
}

func TestLatencyHoldsACallBackAndEndsWithItsContext(t *testing.T) {
	t.Parallel()
	calls := map[string]func(context.Context, *faulty) error{
		"create_latency": func(ctx context.Context, f *faulty) error {
			_, err := f.Create(ctx, createRequest("new"))
			return err
		},
		"attach_latency": func(ctx context.Context, f *faulty) error {
			_, err := f.Attach(ctx, provider.AttachRequest{Session: "new", Owner: "me"})
			return err
		},
		"start_latency": func(ctx context.Context, f *faulty) error {
			_, err := f.StartServer(ctx, provider.StartServerRequest{Owner: "me", SandboxID: "x"})
			return err
		},
		"ping_latency": func(ctx context.Context, f *faulty) error {
			_, err := f.Ping(ctx, provider.PingRequest{Owner: "me", SandboxID: "x"})
			return err
		},
	}
	for attribute, call := range calls {
		t.Run(attribute, func(t *testing.T) {
			t.Parallel()
			slow := mustConfigure(t, attributes{attribute: "1h"})
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
			defer cancel()
			if err := call(ctx, slow); !errors.Is(err, context.DeadlineExceeded) {
				t.Error(err)
			}
			if ids := list(t, slow, "me"); len(ids) != 0 {
				t.Errorf("left behind: %v", ids)
			}
			quick := mustConfigure(t, attributes{attribute: "100ms"})
			begin := time.Now()
			if err := call(t.Context(), quick); errors.Is(err, context.DeadlineExceeded) {
				t.Error(err)
			}
			if took := time.Since(begin); took < 100*time.Millisecond {
				t.Errorf("it took %s", took)
			}
		})
	}
}

func TestAStateFileOutlivesTheProcessThatMadeIt(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "cloud.json")
	first, err := configure(t, attributes{"state": path})
	if err != nil {
		t.Fatal(err)
	}
	made := mustCreate(t, first, "s1")
	endpoints := mustStart(t, first, made.ID)
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}

	second := mustConfigure(t, attributes{"state": path})
	found, err := attach(t, second, "s1", "")
	if err != nil || found.ID != made.ID || found.Origin != provider.OriginAttached {
		t.Fatalf("%+v, %v", found, err)
	}
	if diff := cmp.Diff(endpoints.Server, found.Endpoints.Server); diff != "" {
		t.Error(diff)
	}
	mustPing(t, second, found.ID, found.Endpoints.Server, provider.PingAlive)
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
}

func TestWaitingForTheStateFileEndsWithTheContext(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "cloud.json")
	f := mustConfigure(t, attributes{"state": path})
	unlock, err := lock(t.Context(), path+".lock")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := f.List(ctx, provider.ListRequest{Owner: "me"}); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	unlock()
	list(t, f, "me")
}

func TestEndedSandboxesAreForgottenAfterAMinute(t *testing.T) {
	t.Parallel()
	now := time.Now()
	ago := func(d time.Duration) time.Time { return now.Add(-d) }
	w := newWorld()
	w.add(&sandbox{ID: "alive", Session: "alive", CreatedAt: ago(time.Hour)})
	w.add(&sandbox{ID: "destroyed-long-ago", Session: "a", CreatedAt: ago(time.Hour), DestroyedAt: ago(2 * time.Minute)})
	w.add(&sandbox{ID: "destroyed-just-now", Session: "b", CreatedAt: ago(time.Hour), DestroyedAt: ago(time.Second)})
	w.add(&sandbox{ID: "expired-long-ago", Session: "c", CreatedAt: ago(time.Hour), ExpiresAt: ago(2 * time.Minute)})
	w.add(&sandbox{ID: "short", Session: "d", CreatedAt: ago(time.Second), DestroyedAt: now})
	w.add(&sandbox{ID: "replaced", Session: "e", CreatedAt: ago(time.Hour), DestroyedAt: ago(2 * time.Minute)})
	w.add(&sandbox{ID: "replacement", Session: "e", CreatedAt: ago(time.Minute)})
	w.removeExpired(now)

	var left []string
	for id := range w.Sandboxes {
		left = append(left, id)
	}
	slices.Sort(left)
	if diff := cmp.Diff([]string{"alive", "destroyed-just-now", "replacement", "short"}, left); diff != "" {
		t.Error(diff)
	}
	if len(w.Names) != 4 || w.named(now, "", "e") == nil {
		t.Errorf("%v", w.Names)
	}
}

func TestAWrongConfigurationIsRefusedFieldByField(t *testing.T) {
	t.Parallel()
	broken := filepath.Join(t.TempDir(), "broken.json")
	if err := os.WriteFile(broken, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		attributes
		fields []string
	}{
		"negative quota":        {attributes{"quota": -1}, []string{"quota"}},
		"broken state":          {attributes{"state": broken}, []string{"state"}},
		"state in no directory": {attributes{"state": filepath.Join(broken, "x")}, []string{"state"}},
		"unknown size":          {attributes{"size": "huge"}, []string{"size"}},
		"everything": {
			attributes{"state": broken, "quota": -1, "faults": []string{"a", "b"}},
			[]string{"quota", "state", "faults", "faults"},
		},
	} {
		_, err := configure(t, c.attributes)
		e := wantError(t, err, provider.CodeInvalid, "")
		var fields []string
		for _, f := range e.Fields {
			fields = append(fields, f.Field)
		}
		if diff := cmp.Diff(c.fields, fields); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}
