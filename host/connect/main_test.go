package connect

import (
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/berth-dev/berth/host/records"
	"github.com/berth-dev/berth/internal/fakecloud"
	"github.com/berth-dev/berth/shared/provider"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// bare is a cloud with only the four calls.
type bare struct{ provider.Provider }

const testOwner = "owner-1"

func connector(p provider.Provider) *Connector {
	return New(p, "acme", testOwner, []byte("host secret"), records.NewMemory().Store("test"))
}

func request() Request {
	return Request{
		Session: "s1",
		Server: Server{
			Server: provider.Server{Command: []string{"serve", "--port", "{port}"}, Port: 8000, Env: map[string]string{"A": "b"}},
			KeyEnv: []string{"SESSION_API_KEY"}, KeyHeader: "X-Session-API-Key",
		},
		Lifetime: time.Hour,
	}
}

// failure returns the *Error of a connect that must have failed with the code.
func failure(t *testing.T, err error, code Code) *Error {
	t.Helper()
	e, ok := err.(*Error)
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
