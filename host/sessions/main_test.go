package sessions

import (
	"context"
	"errors"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/berth-dev/berth/host/connect"
	"github.com/berth-dev/berth/host/records"
	"github.com/berth-dev/berth/internal/fakecloud"
	"github.com/berth-dev/berth/shared/provider"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// host is one of several hosts with the same records and the same cloud.
type host struct {
	*Sessions
	*connect.Connector
	store *records.MemoryStore
}

func hostOf(p provider.Provider, memory *records.Memory, name string) host {
	return hostOn("acme", p, memory, name)
}

func hostOn(providerName string, p provider.Provider, memory *records.Memory, name string) host {
	store := memory.Store(name)
	connector := connect.New(p, providerName, testOwner, []byte("host secret"), store)
	return host{New(connector), connector, store}
}

const testOwner = "owner-1"

func request() connect.Request {
	return connect.Request{
		Session:  "s1",
		Server:   connect.Server{Server: provider.Server{Command: []string{"serve"}, Port: 8000}, KeyHeader: "X-Key"},
		Lifetime: time.Hour,
	}
}

// connected connects the session, and returns the id of its sandbox. h is a host, or its connector.
func connected(t *testing.T, h interface {
	Connect(ctx context.Context, request connect.Request, events func(connect.Event)) (connect.Result, error)
}) string {
	t.Helper()
	result, err := h.Connect(t.Context(), request(), nil)
	ok(t, err)
	return result.SandboxID
}

// failure returns the *connect.Error of a call that must have failed with the code.
func failure(t *testing.T, err error, code connect.Code) *connect.Error {
	t.Helper()
	e, ok := err.(*connect.Error)
	if !ok {
		t.Fatalf("got %T %v, want an error with code %s", err, err, code)
	}
	if e.Code != code {
		t.Fatalf("got code %s (%s), want %s", e.Code, e.Message, code)
	}
	return e
}

func nothingLeft(t *testing.T, c *fakecloud.Cloud) {
	t.Helper()
	if left := c.Left(); len(left) > 0 {
		t.Errorf("left behind: %v (calls: %s)", left, c.Called())
	}
}

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func same[T comparable](t *testing.T, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Errorf("%s: got %v, want %v", what, got, want)
	}
}

func recordOf(t *testing.T, h host) records.Record {
	t.Helper()
	record, err := h.store.Get(t.Context(), "s1")
	ok(t, err)
	return record
}

func failureCleanup(err error) connect.Cleanup {
	var e *connect.Error
	errors.As(err, &e)
	return e.Cleanup
}
