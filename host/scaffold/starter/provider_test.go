package main

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/berth-dev/berth/shared/provider"
)

// The conformance suite in conformance_test.go holds the plugin to the contract. The tests here are for what only this
// plugin knows: its cloud's API, and what happens when that misbehaves.

func TestASandboxLivesFromCreateToDestroy(t *testing.T) {
	t.Parallel()
	_, c := setup(t)
	sandbox := create(t, c, "s1")
	if sandbox.Origin != provider.OriginCreated || sandbox.State != provider.StateRunning {
		t.Errorf("created: %+v", sandbox)
	}
	endpoints := start(t, c, sandbox)
	if result := awaitPing(t, c, pingRequest(sandbox, endpoints)); result.Status != provider.PingAlive {
		t.Errorf("ping: %+v", result)
	}
	ref := provider.SandboxRef{Owner: owner, SandboxID: sandbox.ID}
	if err := c.Suspend(t.Context(), ref); err != nil {
		t.Fatal(err)
	}
	if result := awaitPing(t, c, pingRequest(sandbox, endpoints)); result.Status != provider.PingStopped {
		t.Errorf("ping while suspended: %+v", result)
	}
	woken, err := c.Attach(t.Context(), provider.AttachRequest{Session: "s1", Owner: owner, Lifetime: time.Hour})
	if err != nil || woken.Origin != provider.OriginWoken || woken.ID != sandbox.ID {
		t.Errorf("attached: %+v, %v", woken, err)
	}
	start(t, c, woken)
	if err := c.Destroy(t.Context(), ref); err != nil {
		t.Fatal(err)
	}
	if left := list(t, c); len(left) > 0 {
		t.Errorf("left: %+v", left)
	}
}

func TestOneSessionHasOneSandboxWhoeverCreates(t *testing.T) {
	t.Parallel()
	simulated := newSim(t)
	var creates sync.WaitGroup
	ids := make([]string, 8)
	for i := range ids {
		c := newCloud(t, simulated)
		creates.Go(func() {
			request := createRequest("s1")
			request.Attempt = fmt.Sprint("attempt-", i)
			sandbox, err := c.Create(t.Context(), request)
			if err != nil {
				t.Error(err)
			}
			ids[i] = sandbox.ID
		})
	}
	creates.Wait()
	for _, id := range ids {
		if id != ids[0] {
			t.Errorf("different sandboxes: %v", ids)
		}
	}
}

func TestACreateRidesOutWhatPasses(t *testing.T) {
	t.Parallel()
	simulated, c := setup(t)
	for i, status := range []int{0, http.StatusBadGateway, http.StatusTooManyRequests} { // 0: the answer is lost
		session := fmt.Sprint("s", i)
		simulated.Fault("POST /v1/boxes", status)
		if sandbox := create(t, c, session); sandbox.Origin != provider.OriginCreated {
			t.Errorf("after %d: %+v", status, sandbox)
		}
		if there := list(t, c); len(there) != i+1 {
			t.Errorf("after %d there are %+v", status, there)
		}
	}
}

func TestACreateThatFailsLeavesNothing(t *testing.T) {
	t.Parallel()
	simulated, c := setup(t)
	for status, want := range map[int]provider.Code{
		http.StatusPaymentRequired: provider.CodeExhausted, http.StatusForbidden: provider.CodeDenied,
	} {
		simulated.Fault("POST /v1/boxes", status)
		_, err := c.Create(t.Context(), createRequest("s1"))
		wantCode(t, err, want)
		if left := list(t, c); len(left) > 0 {
			t.Errorf("after %d, left: %+v", status, left)
		}
	}
}

func TestACancelledCreateLeavesNothing(t *testing.T) {
	t.Parallel()
	_, c := setup(t)
	for _, after := range []time.Duration{0, time.Millisecond, 10 * time.Millisecond} {
		ctx, cancel := context.WithTimeout(t.Context(), after)
		_, err := c.Create(ctx, createRequest("s1"))
		cancel()
		if err != nil {
			wantCode(t, err, provider.CodeTimeout)
			if left := list(t, c); len(left) > 0 {
				t.Errorf("cancelled after %v, left: %+v", after, left)
			}
		}
	}
}

func TestAFailedLookUpIsNotTakenForNothing(t *testing.T) {
	t.Parallel()
	simulated, c := setup(t)
	name := provider.SandboxName(owner, "s1")
	attach := func() error {
		_, err := c.Attach(t.Context(), provider.AttachRequest{Session: "s1", Owner: owner})
		return err
	}
	simulated.Fault("GET /v1/boxes/"+name, http.StatusForbidden)
	wantCode(t, attach(), provider.CodeDenied)
	wantCode(t, attach(), provider.CodeNotFound)
	simulated.Close()
	wantCode(t, attach(), provider.CodeUnreachable)
}

func TestAServerThatEndsSaysWhy(t *testing.T) {
	t.Parallel()
	_, c := setup(t)
	sandbox := create(t, c, "s1")
	server := testServer()
	server.Command = []string{"sh", "-c", "echo no licence; exit 3"}
	endpoints, err := c.StartServer(t.Context(), startRequest(sandbox, server))
	if err == nil { // a busy machine took its time: then the ping knows
		result := awaitPing(t, c, pingRequest(sandbox, endpoints))
		if result.Status != provider.PingExited || result.ExitCode == nil || *result.ExitCode != 3 {
			t.Errorf("ping: %+v", result)
		}
		return
	}
	e := wantCode(t, err, provider.CodeFailed)
	if e.Reason != provider.ReasonServerExited || e.ExitCode == nil || *e.ExitCode != 3 || strings.Join(e.LogTail, "\n") != "no licence" {
		t.Errorf("error: %+v", e)
	}
}

func TestListGivesAllPages(t *testing.T) {
	t.Parallel()
	_, c := setup(t)
	for i := range 45 {
		create(t, c, fmt.Sprint("s", i))
	}
	if sandboxes := list(t, c); len(sandboxes) != 45 {
		t.Errorf("%d sandboxes, want 45", len(sandboxes))
	}
}

func TestASandboxEndsWithItsLifetime(t *testing.T) {
	t.Parallel()
	_, c := setup(t)
	request := createRequest("s1")
	request.Lifetime = 3 * time.Second
	sandbox, err := c.Create(t.Context(), request)
	if err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(30 * time.Second); len(list(t, c)) > 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it lives on")
		}
	}
	_, err = c.Attach(t.Context(), provider.AttachRequest{Session: "s1", Owner: owner, SandboxID: sandbox.ID})
	if e := wantCode(t, err, provider.CodeNotFound); e.Reason != provider.ReasonGone {
		t.Errorf("reason: %q", e.Reason)
	}
}

func TestAURLThatIsNoneIsRefused(t *testing.T) {
	t.Parallel()
	for _, url := range []string{"", "cloud.example", "ftp://cloud.example", "http://"} {
		_, err := open(t.Context(), Config{APIKey: key, URL: url}, hclog.NewNullLogger())
		if e := wantCode(t, err, provider.CodeInvalid); len(e.Fields) != 1 || e.Fields[0].Field != "url" {
			t.Errorf("%q: %+v", url, e)
		}
	}
}

func TestTheKeyIsInNoError(t *testing.T) {
	t.Parallel()
	simulated, c := setup(t)
	c.api.Header.Set("Authorization", "Bearer wrong-"+key)
	_, err := c.Create(t.Context(), createRequest("s1"))
	e := wantCode(t, err, provider.CodeDenied)
	simulated.Close()
	_, lost := c.Create(t.Context(), createRequest("s1"))
	for _, text := range []string{fmt.Sprintf("%+v", *e), lost.Error()} {
		if strings.Contains(text, key) {
			t.Errorf("the key is in %s", text)
		}
	}
}
