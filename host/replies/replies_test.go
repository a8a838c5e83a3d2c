package replies

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/berth-dev/berth/host/lease"
	"github.com/berth-dev/berth/host/records"
	"github.com/berth-dev/berth/shared/provider"
)

// answers is a provider that answers what it was told to.
type answers struct {
	sandbox provider.Sandbox
	listed  []provider.Sandbox
	err     error
}

func (a answers) Create(context.Context, provider.CreateRequest) (provider.Sandbox, error) {
	return a.sandbox, a.err
}

func (a answers) Attach(context.Context, provider.AttachRequest) (provider.Sandbox, error) {
	return a.sandbox, a.err
}

func (a answers) StartServer(context.Context, provider.StartServerRequest) (provider.Endpoints, error) {
	return provider.Endpoints{}, a.err
}

func (a answers) Ping(context.Context, provider.PingRequest) (provider.PingResult, error) {
	return provider.PingResult{}, a.err
}

type lister struct{ answers }

func (l lister) List(context.Context, provider.ListRequest) ([]provider.Sandbox, error) {
	return l.listed, l.err
}

// recorded returns records in which the session s2 has the sandbox sb-2.
func recorded(t *testing.T) *records.MemoryStore {
	t.Helper()
	store := records.NewMemory().Store("test")
	taken, _, err := store.Take(t.Context(), "s2")
	if err == nil {
		err = store.Release(t.Context(), taken, records.Record{Provider: "acme", SandboxID: "sb-2", State: records.StateRunning})
	}
	if err != nil {
		t.Fatal(err)
	}
	return store
}

func TestNoAnswerGivesASessionTheSandboxOfAnother(t *testing.T) {
	t.Parallel()
	store := recorded(t)
	for _, test := range []struct {
		id, session, asked string
		refused            bool
	}{
		{"sb-2", "s1", "", true}, {"sb-2", "s2", "", false}, {"sb-2", "s2", "sb-2", false}, {"sb-1", "s1", "", false}, {"sb-2", "s1", "sb-1", true},
	} {
		p := Check(answers{sandbox: provider.Sandbox{ID: test.id}}, "acme", store)
		_, created := p.Create(t.Context(), provider.CreateRequest{Session: test.session})
		_, attached := p.Attach(t.Context(), provider.AttachRequest{Session: test.session, SandboxID: test.asked})
		for call, err := range map[string]error{"Create": created, "Attach": attached} {
			e := provider.AsError(err)
			if (e != nil) != test.refused || e != nil && (e.Reason != provider.ReasonInvalidReply || e.SandboxID != "") {
				t.Errorf("%s gives %s to %s: %v", call, test.id, test.session, err)
			}
		}
	}
	namesake := Check(answers{sandbox: provider.Sandbox{ID: "sb-2"}}, "other", store)
	if _, err := namesake.Create(t.Context(), provider.CreateRequest{Session: "s1"}); err != nil {
		t.Errorf("another provider's sandbox with the same id: %v", err)
	}
}

func TestAListingOfASessionLacksWhatIsAnothers(t *testing.T) {
	t.Parallel()
	p := Check(lister{answers{listed: []provider.Sandbox{{ID: "sb-2"}, {ID: "sb-1"}}}}, "acme", recorded(t))
	listed, err := p.List(t.Context(), provider.ListRequest{Session: "s1"})
	if len(listed) != 1 || listed[0].ID != "sb-1" || provider.AsError(err).Reason != provider.ReasonInvalidReply {
		t.Errorf("got %v, %v", listed, err)
	}
	listed, err = p.List(t.Context(), provider.ListRequest{})
	if len(listed) != 2 || err != nil {
		t.Errorf("of all sessions: %v, %v", listed, err)
	}
}

func TestAnErrorDoesNotNameTheSandboxOfAnotherSessionAsItsOwn(t *testing.T) {
	t.Parallel()
	store := recorded(t)
	for id, want := range map[string]string{"sb-2": "", "sb-1": "sb-1"} {
		wantMessage := "half made"
		if want == "" {
			wantMessage += ` (it names the sandbox sb-2, which is that of session "s2")`
		}
		failure := &provider.Error{Code: provider.CodeFailed, SandboxID: id, Message: "half made"}
		_, err := Check(answers{err: failure}, "acme", store).Create(t.Context(), provider.CreateRequest{Session: "s1"})
		e := provider.AsError(err)
		if e.SandboxID != want || e.Message != wantMessage || e.Code != provider.CodeFailed || failure.SandboxID != id {
			t.Errorf("%s: %+v", id, e)
		}
	}
}

// broken are records that cannot be read.
type broken struct{ records.Store }

var errBroken = errors.New("the disk is gone")

func (broken) Naming(context.Context, string, string) ([]string, error) {
	return nil, errBroken
}

func TestWhatTheRecordsCannotTellIsNotBelieved(t *testing.T) {
	t.Parallel()
	var failed *lease.Error
	p := Check(lister{answers{sandbox: provider.Sandbox{ID: "sb-1"}, listed: []provider.Sandbox{{ID: "sb-1"}}}}, "acme", broken{})
	sandbox, err := p.Create(t.Context(), provider.CreateRequest{Session: "s1"})
	if !errors.As(err, &failed) || !errors.Is(err, errBroken) || sandbox.ID != "sb-1" {
		t.Errorf("Create: %v, %v", sandbox, err)
	}
	if listed, err := p.List(t.Context(), provider.ListRequest{Session: "s1"}); len(listed) > 0 || !errors.As(err, &failed) {
		t.Errorf("List: %v, %v", listed, err)
	}
	p = Check(answers{err: &provider.Error{Code: provider.CodeFailed, SandboxID: "sb-1", Message: "half made"}}, "acme", broken{})
	_, err = p.Create(t.Context(), provider.CreateRequest{Session: "s1"})
	if e := provider.AsError(err); e.SandboxID != "" || e.Message != "half made" || e.Code != provider.CodeFailed {
		t.Errorf("a failed Create: %v", err)
	}
}

func TestCallsThatTheProviderLacksAreUnsupported(t *testing.T) {
	t.Parallel()
	p := Check(answers{}, "acme", recorded(t))
	_, list := p.List(t.Context(), provider.ListRequest{})
	_, renew := p.Renew(t.Context(), provider.RenewRequest{Lifetime: time.Hour})
	_, logs := p.Logs(t.Context(), provider.LogsRequest{})
	suspend, destroy := p.Suspend(t.Context(), provider.SandboxRef{}), p.Destroy(t.Context(), provider.SandboxRef{})
	for _, err := range []error{list, renew, logs, suspend, destroy} {
		if provider.CodeOf(err) != provider.CodeUnsupported {
			t.Errorf("got %v", err)
		}
	}
}
