package provider

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	pb "github.com/berth-dev/berth/shared/proto/berth/provider/v1"
)

// fake answers every call from its functions' results and remembers what it was asked.
type fake struct {
	asked     any
	sandbox   Sandbox
	endpoints Endpoints
	ping      PingResult
	sandboxes []Sandbox
	end       time.Time
	lines     []string
	err       error
	panics    bool
}

func (f *fake) remember(request any) {
	f.asked = request
	if f.panics {
		panic("boom")
	}
}

func (f *fake) Create(_ context.Context, r CreateRequest) (Sandbox, error) {
	f.remember(r)
	return f.sandbox, f.err
}

func (f *fake) Attach(_ context.Context, r AttachRequest) (Sandbox, error) {
	f.remember(r)
	return f.sandbox, f.err
}

func (f *fake) StartServer(_ context.Context, r StartServerRequest) (Endpoints, error) {
	f.remember(r)
	return f.endpoints, f.err
}

func (f *fake) Ping(_ context.Context, r PingRequest) (PingResult, error) {
	f.remember(r)
	return f.ping, f.err
}

func (f *fake) List(_ context.Context, r ListRequest) ([]Sandbox, error) {
	f.remember(r)
	return f.sandboxes, f.err
}

func (f *fake) Renew(_ context.Context, r RenewRequest) (time.Time, error) {
	f.remember(r)
	return f.end, f.err
}

func (f *fake) Suspend(_ context.Context, r SandboxRef) error { f.remember(r); return f.err }

func (f *fake) Destroy(_ context.Context, r SandboxRef) error { f.remember(r); return f.err }

func (f *fake) Logs(_ context.Context, r LogsRequest) ([]string, error) {
	f.remember(r)
	return f.lines, f.err
}

// four has only the four calls.
type four struct{ Provider }

// full fills every field of a struct with something that is not its zero value, so that a field which does not cross
// the wire is noticed the day it is added.
func full[T any]() T {
	var v T
	fill(reflect.ValueOf(&v).Elem(), "x")
	return v
}

var words = map[reflect.Type]string{
	reflect.TypeFor[State]():         string(StateRunning),
	reflect.TypeFor[Origin]():        string(OriginAttached),
	reflect.TypeFor[PingStatus]():    string(PingExited),
	reflect.TypeFor[Capability]():    string(CapabilityLogs),
	reflect.TypeFor[AttributeType](): string(TypeDuration),
	reflect.TypeFor[Code]():          string(CodeExhausted),
}

func fill(v reflect.Value, path string) {
	switch {
	case v.Type() == reflect.TypeFor[time.Time]():
		v.Set(reflect.ValueOf(time.Date(2026, 11, 23, 12, 0, 0, len(path), time.UTC)))
	case v.Type() == reflect.TypeFor[time.Duration]():
		v.SetInt(int64(time.Second) * int64(len(path)))
	case words[v.Type()] != "":
		v.SetString(words[v.Type()])
	case v.Type() == reflect.TypeFor[error]():
	case v.Kind() == reflect.Struct:
		for i := range v.NumField() {
			fill(v.Field(i), path+"_"+strings.ToLower(v.Type().Field(i).Name))
		}
	case v.Kind() == reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem(), path)
	case v.Kind() == reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		fill(v.Index(0), path+"0")
		fill(v.Index(1), path+"1")
	case v.Kind() == reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		key, value := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
		fill(key, path+"k")
		fill(value, path+"v")
		v.SetMapIndex(key, value)
	case v.Kind() == reflect.String && strings.HasSuffix(path, "_url"):
		v.SetString("https://" + strings.ReplaceAll(path, "_", "-") + ".example")
	case v.Kind() == reflect.String:
		v.SetString(path)
	case v.Kind() == reflect.Bool:
		v.SetBool(true)
	case v.Kind() == reflect.Int:
		v.SetInt(int64(len(path)))
	default:
		panic("fill does not know " + v.Type().String())
	}
}

type noConfig struct{}

// connect serves p on an in-memory connection and gives a configured client.
func connect[P Provider](t *testing.T, p P) *Client {
	t.Helper()
	server := newServer(Info{Name: "fake", Version: "1.2.3", Summary: "A fake."}, hclog.NewNullLogger(),
		func(context.Context, noConfig, hclog.Logger) (P, error) { return p, nil })
	client := NewClient(dial(t, server.register))
	if err := client.Configure(t.Context(), []byte("{}")); err != nil {
		t.Fatal(err)
	}
	return client
}

func dial(t *testing.T, register func(grpc.ServiceRegistrar)) *grpc.ClientConn {
	t.Helper()
	guard := &callGuard{log: hclog.NewNullLogger()}
	server := grpc.NewServer(grpc.UnaryInterceptor(guard.unary), grpc.StreamInterceptor(guard.stream))
	register(server)
	listener := bufconn.Listen(1 << 20)
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = server.Serve(listener)
	}()
	conn, err := grpc.NewClient("passthrough:///plugin", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		conn.Close()
		server.Stop()
		<-served
	})
	return conn
}

func equal(t *testing.T, what string, got, want any) {
	t.Helper()
	if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

func TestEveryFieldOfEveryRequestCrossesTheWire(t *testing.T) {
	t.Parallel()
	f := &fake{err: Errorf(CodeFailed, "only the request matters here")}
	c := connect(t, f)
	ctx := t.Context()
	for _, call := range []struct {
		request any
		send    func(any)
	}{
		{full[CreateRequest](), func(r any) { c.Create(ctx, r.(CreateRequest)) }},
		{full[AttachRequest](), func(r any) { c.Attach(ctx, r.(AttachRequest)) }},
		{full[StartServerRequest](), func(r any) { c.StartServer(ctx, r.(StartServerRequest)) }},
		{full[PingRequest](), func(r any) { c.Ping(ctx, r.(PingRequest)) }},
		{full[ListRequest](), func(r any) { c.List(ctx, r.(ListRequest)) }},
		{full[RenewRequest](), func(r any) { c.Renew(ctx, r.(RenewRequest)) }},
		{full[SandboxRef](), func(r any) { c.Suspend(ctx, r.(SandboxRef)) }},
		{full[SandboxRef](), func(r any) { c.Destroy(ctx, r.(SandboxRef)) }},
		{full[LogsRequest](), func(r any) { c.Logs(ctx, r.(LogsRequest)) }},
	} {
		f.asked = nil
		call.send(call.request)
		equal(t, reflect.TypeOf(call.request).Name(), f.asked, call.request)
	}
}

func TestEveryFieldOfEveryReplyCrossesTheWire(t *testing.T) {
	t.Parallel()
	second := full[Sandbox]()
	second.ID = "another"
	f := &fake{
		sandbox: full[Sandbox](), endpoints: full[Endpoints](), ping: full[PingResult](),
		sandboxes: []Sandbox{full[Sandbox](), second}, end: time.Unix(12345, 6).UTC(), lines: []string{"one", "two"},
	}
	c := connect(t, f)
	ctx := t.Context()

	asked := Server{ExtraPorts: map[string]int{}}
	for name := range f.endpoints.Extra {
		asked.ExtraPorts[name] = 1
	}
	created, err := c.Create(ctx, CreateRequest{Session: f.sandbox.Session, Owner: f.sandbox.Owner})
	equal(t, "Create's error", err, nil)
	equal(t, "Create", created, f.sandbox)
	f.sandbox.Endpoints.Extra = f.endpoints.Extra
	attached, err := c.Attach(ctx, AttachRequest{Session: f.sandbox.Session, Owner: f.sandbox.Owner, Server: asked})
	equal(t, "Attach's error", err, nil)
	equal(t, "Attach", attached, f.sandbox)
	endpoints, err := c.StartServer(ctx, StartServerRequest{Server: asked})
	equal(t, "StartServer's error", err, nil)
	equal(t, "StartServer", endpoints, f.endpoints)
	ping, err := c.Ping(ctx, PingRequest{})
	equal(t, "Ping's error", err, nil)
	equal(t, "Ping", ping, f.ping)
	sandboxes, err := c.List(ctx, ListRequest{Owner: f.sandbox.Owner})
	equal(t, "List's error", err, nil)
	equal(t, "List", sandboxes, f.sandboxes)
	end, err := c.Renew(ctx, RenewRequest{})
	equal(t, "Renew's error", err, nil)
	equal(t, "Renew", end, f.end)
	lines, err := c.Logs(ctx, LogsRequest{Lines: 2})
	equal(t, "Logs' error", err, nil)
	equal(t, "Logs", lines, f.lines)
}

func TestEveryWordOfTheContractHasItsOwnNumber(t *testing.T) {
	t.Parallel()
	for s := range stateTable {
		equal(t, "state", sandboxFromWire(sandboxToWire(Sandbox{State: s})).State, s)
	}
	for s := range pingTable {
		equal(t, "ping status", pingFromWire(pingToWire(PingResult{Status: s})).Status, s)
	}
	for code := range codeTable {
		equal(t, "code", CodeOf(errorFromWire(t.Context(), "Create", errorToWire(&Error{Code: code}))), code)
	}
	for o := range originTable {
		equal(t, "origin", sandboxFromWire(sandboxToWire(Sandbox{Origin: o})).Origin, o)
	}
	for typ := range typeTable {
		d := Description{Attributes: []Attribute{{Type: typ}}}
		equal(t, "type", descriptionFromWire(descriptionToWire(d)), d)
	}
	for c := range capabilityTable {
		d := Description{Capabilities: []Capability{c}}
		equal(t, "capability", descriptionFromWire(descriptionToWire(d)), d)
	}
	// Numbers of a newer protocol 1 are never taken for something else.
	equal(t, "unknown state", sandboxFromWire(&pb.Sandbox{State: 99}).State, StateUnknown)
	equal(t, "unknown ping status", pingFromWire(&pb.PingResponse{Status: 99}).Status, PingStatus(""))
	equal(t, "unknown origin", sandboxFromWire(&pb.Sandbox{Origin: 99}).Origin, Origin(""))
}

func TestTheDescriptionCrossesTheWire(t *testing.T) {
	t.Parallel()
	type config struct {
		Key  string        `berth:"key,required,sensitive" env:"FAKE_KEY,OTHER_KEY" doc:"The key."`
		Size string        `berth:"size" default:"small" oneof:"small,large" doc:"The size."`
		Idle time.Duration `berth:"idle" default:"15m" doc:"The idle time."`
	}
	server := newServer(Info{Name: "fake", Version: "1.2.3", Summary: "A fake.", EndpointHeaders: []string{"X-Edge"}}, hclog.NewNullLogger(),
		func(context.Context, config, hclog.Logger) (*fake, error) { return &fake{}, nil })
	got, err := NewClient(dial(t, server.register)).Describe(t.Context())
	equal(t, "error", err, nil)
	equal(t, "description", got, Description{
		Name: "fake", Version: "1.2.3", Summary: "A fake.", EndpointHeaders: []string{"X-Edge"},
		Capabilities: []Capability{CapabilityList, CapabilityRenew, CapabilitySuspend, CapabilityDestroy, CapabilityLogs},
		Attributes: []Attribute{
			{Name: "key", Type: TypeString, Required: true, Sensitive: true, Env: []string{"FAKE_KEY", "OTHER_KEY"}, Doc: "The key."},
			{Name: "size", Type: TypeString, Default: `"small"`, OneOf: []string{"small", "large"}, Doc: "The size."},
			{Name: "idle", Type: TypeDuration, Default: `"15m"`, Doc: "The idle time."},
		},
	})
}

func TestAProviderWithOnlyTheFourCallsRefusesTheOthers(t *testing.T) {
	t.Parallel()
	c := connect(t, four{&fake{}})
	d, err := c.Describe(t.Context())
	equal(t, "error", err, nil)
	equal(t, "capabilities", d.Capabilities, []Capability(nil))
	_, err = c.List(t.Context(), ListRequest{})
	equal(t, "List", CodeOf(err), CodeUnsupported)
	equal(t, "Destroy", CodeOf(c.Destroy(t.Context(), SandboxRef{})), CodeUnsupported)
	equal(t, "Suspend", CodeOf(c.Suspend(t.Context(), SandboxRef{})), CodeUnsupported)
}

func TestAnErrorCrossesTheWireWhole(t *testing.T) {
	t.Parallel()
	want := full[Error]()
	want.Reason = "OUT_OF_LUCK"
	c := connect(t, &fake{err: &want})
	_, err := c.Create(t.Context(), CreateRequest{})
	equal(t, "error", AsError(err), &want)
	err = c.Destroy(t.Context(), SandboxRef{})
	equal(t, "error of an optional call", AsError(err), &want)
	_, err = c.List(t.Context(), ListRequest{})
	equal(t, "error of a stream", AsError(err), &want)
}

func TestAnErrorIsCutToWhatTrailersCarry(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("long line\xff ", 1000)
	c := connect(t, &fake{err: &Error{Code: CodeFailed, Message: long, LogTail: strings.Split(strings.Repeat(long+"\n", 50), "\n")}})
	_, err := c.Create(t.Context(), CreateRequest{})
	e := AsError(err)
	if e.Code != CodeFailed || len(e.Message) > messageBytes+10 || len(strings.Join(e.LogTail, "\n")) > tailBytes {
		t.Errorf("code %s, message of %d bytes, log tail of %d bytes", e.Code, len(e.Message), len(strings.Join(e.LogTail, "\n")))
	}
}

func TestAPanicInACallIsAnErrorAndThePluginLives(t *testing.T) {
	t.Parallel()
	f := &fake{panics: true}
	c := connect(t, f)
	_, err := c.Create(t.Context(), CreateRequest{Session: "s"})
	e := AsError(err)
	equal(t, "code", e.Code, CodeInternal)
	equal(t, "reason", e.Reason, ReasonPanic)
	_, err = c.List(t.Context(), ListRequest{})
	equal(t, "reason of a stream", AsError(err).Reason, ReasonPanic)
	f.panics, f.err = false, Errorf(CodeNotFound, "none")
	_, err = c.Attach(t.Context(), AttachRequest{})
	equal(t, "next call", CodeOf(err), CodeNotFound)
}

func TestListCarriesThousandsOfSandboxes(t *testing.T) {
	t.Parallel()
	f := &fake{}
	for i := range 2*listChunk + 1 {
		f.sandboxes = append(f.sandboxes, full[Sandbox]())
		f.sandboxes[i].ID = fmt.Sprint("sb-", i)
	}
	got, err := connect(t, f).List(t.Context(), ListRequest{Owner: f.sandboxes[0].Owner})
	equal(t, "error", err, nil)
	equal(t, "count", len(got), len(f.sandboxes))
}

func TestListKeepsToTheSessionAskedFor(t *testing.T) {
	t.Parallel()
	c := connect(t, &fake{sandboxes: []Sandbox{{ID: "a", Session: "s1"}, {ID: "b", Session: "s2"}}})
	got, err := c.List(t.Context(), ListRequest{Session: "s2"})
	equal(t, "error", err, nil)
	equal(t, "sandboxes", got, []Sandbox{{ID: "b", Session: "s2", State: StateUnknown}})
}

func TestCallsBeforeConfigureAreRefused(t *testing.T) {
	t.Parallel()
	server := newServer(Info{Name: "fake"}, hclog.NewNullLogger(),
		func(context.Context, noConfig, hclog.Logger) (*fake, error) { return &fake{}, nil })
	c := NewClient(dial(t, server.register))
	_, err := c.Create(t.Context(), CreateRequest{})
	equal(t, "Create", CodeOf(err), CodeState)
	equal(t, "unknown attribute", AsError(c.Configure(t.Context(), []byte(`{"nope":1}`))).Fields,
		[]FieldError{{Field: "nope", Message: "is not known to this provider"}})
	equal(t, "Configure", c.Configure(t.Context(), nil), nil)
	equal(t, "Configure again", CodeOf(c.Configure(t.Context(), nil)), CodeState)
}

func TestCancelReachesTheProvider(t *testing.T) {
	t.Parallel()
	stuck := &stuckProvider{cancelled: make(chan struct{}), entered: make(chan struct{})}
	c := connect(t, stuck)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-stuck.entered
		cancel()
	}()
	_, err := c.Create(ctx, CreateRequest{})
	equal(t, "code", CodeOf(err), CodeCanceled)
	<-stuck.cancelled
}

type stuckProvider struct {
	fake
	entered, cancelled chan struct{}
}

func (s *stuckProvider) Create(ctx context.Context, _ CreateRequest) (Sandbox, error) {
	close(s.entered)
	<-ctx.Done()
	close(s.cancelled)
	return Sandbox{}, ctx.Err()
}

func TestACallInJSONIsTheCallOfThatName(t *testing.T) {
	t.Parallel()
	sandbox := Sandbox{ID: "sb-1", State: StateRunning, Origin: OriginCreated, Session: "s1", ExpiresAt: time.Unix(0, 0)}
	code := 3
	f := &fake{
		sandbox: sandbox, endpoints: Endpoints{Server: Endpoint{URL: "http://h"}}, ping: PingResult{Status: PingExited, ExitCode: &code},
		sandboxes: []Sandbox{{ID: "sb-1", Owner: "me"}, {ID: "sb-2", Owner: "me"}}, end: time.Unix(60, 0), lines: []string{"a", "b"},
	}
	c := connect(t, f)
	for method, test := range map[string]struct {
		request string
		asked   any
		answer  string
	}{
		"Create": {
			`{"session": "s1", "server": {"command": ["x"], "extraPorts": {"vnc": 1}}, "lifetime": "90s"}`,
			CreateRequest{Session: "s1", Server: Server{Command: []string{"x"}, ExtraPorts: map[string]int{"vnc": 1}}, Lifetime: 90 * time.Second},
			`{"sandbox":{"expires_at":"1970-01-01T00:00:00Z","id":"sb-1","origin":"ORIGIN_CREATED","session":"s1","state":"SANDBOX_STATE_RUNNING"}}`,
		},
		"StartServer": {`{"sandbox_id": "b"}`, StartServerRequest{SandboxID: "b"}, `{"endpoints":{"server":{"url":"http://h"}}}`},
		"Ping":        {`{"endpoint": {"url": "u"}}`, PingRequest{Endpoint: Endpoint{URL: "u"}}, `{"exit_code":3,"status":"PING_STATUS_EXITED"}`},
		"List": {
			`{"owner": "me"}`, ListRequest{Owner: "me"},
			`{"sandboxes":[{"id":"sb-1","owner":"me","state":"SANDBOX_STATE_UNKNOWN"},{"id":"sb-2","owner":"me","state":"SANDBOX_STATE_UNKNOWN"}]}`,
		},
		"Renew":   {`{"sandbox_id": "b"}`, RenewRequest{SandboxRef: SandboxRef{SandboxID: "b"}}, `{"expires_at":"1970-01-01T00:01:00Z"}`},
		"Suspend": {`{"sandbox_id": "b"}`, SandboxRef{SandboxID: "b"}, `{}`},
		"Destroy": {`{"sandbox_id": "b"}`, SandboxRef{SandboxID: "b"}, `{}`},
		"Logs":    {`{"lines": 1}`, LogsRequest{Lines: 1}, `{"lines":["b"]}`},
	} {
		got, err := c.CallJSON(t.Context(), method, []byte(test.request))
		if err != nil {
			t.Errorf("%s: %v", method, err)
			continue
		}
		equal(t, method+": asked", f.asked, test.asked)
		var answer any // the encoder varies its spaces on purpose
		equal(t, method+": error", json.Unmarshal(got, &answer), nil)
		sorted, _ := json.Marshal(answer)
		equal(t, method+": answer", string(sorted), test.answer)
	}
}

func TestACallInJSONFailsAsTheCallOfThatName(t *testing.T) {
	t.Parallel()
	fails := connect(t, &fake{err: &Error{Code: CodeExhausted, Reason: ReasonQuota, Message: "full", SandboxID: "b", LogTail: []string{"x"}}})
	_, err := fails.CallJSON(t.Context(), "Create", []byte(`{}`))
	equal(t, "the provider's error", AsError(err), &Error{Code: CodeExhausted, Reason: ReasonQuota, Message: "full", SandboxID: "b", LogTail: []string{"x"}})
	_, err = connect(t, &fake{}).CallJSON(t.Context(), "Create", []byte(`{"session": "s1"}`))
	equal(t, "an answer that breaks the contract", AsError(err).Reason, ReasonInvalidReply)
	_, err = fails.CallJSON(t.Context(), "Describe", []byte(`{}`))
	equal(t, "a call of the set-up", CodeOf(err), CodeUnsupported)
	for request, problem := range map[string]string{
		`{"sesion": "s1"}`:      `unknown field "sesion". Its fields are owner, session, all_owners`,
		`{"owner": 1}`:          `invalid value for string field owner: 1`,
		`[]`:                    `unexpected token [`,
		`{"owner": "me"`:        `unexpected`,
		`{"all_owners": "yes"}`: `invalid value for bool field`,
	} {
		_, err := fails.CallJSON(t.Context(), "List", []byte(request))
		if !errors.Is(err, ErrBadRequest) || CodeOf(err) != CodeInvalid || !strings.Contains(err.Error(), problem) {
			t.Errorf("%s: %v", request, err)
		}
	}
}
