package simcloud

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
)

// cloud is a small API with one operation, "create", and counts what was created.
type cloud struct {
	Traffic
	made atomic.Int32
	url  string
}

func newCloud(t *testing.T) *cloud {
	t.Helper()
	c := &cloud{}
	server, err := Serve(c.HTTP(operation, http.HandlerFunc(c.serve)), ServeOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Close)
	c.url = server.URL
	return c
}

func operation(r *http.Request) string {
	return map[string]string{"/create": "create", "/stream": "create", "/list": "list"}[r.URL.Path]
}

func (c *cloud) serve(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	c.made.Add(1)
	w.WriteHeader(http.StatusCreated)
	fmt.Fprintf(w, `{"made":%q}`, body)
	if r.URL.Path == "/stream" {
		http.NewResponseController(w).Flush()
		<-r.Context().Done()
	}
}

// post returns what the client sees: the status, the Retry-After and the body.
func (c *cloud) post(ctx context.Context, path string) (string, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, c.url+path, strings.NewReader("body"))
	if err != nil {
		return "", err
	}
	request.Header.Set("X-Api-Key", "secret")
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	return strings.Join(strings.Fields(fmt.Sprint(response.StatusCode, " ", response.Header.Get("Retry-After"), " ", string(body))), " "), err
}

// logged waits until a call of the operation is over and returns it.
func logged(t *testing.T, traffic *Traffic, operation string) Call {
	t.Helper()
	var call Call
	eventually(t, "the call is logged", func() bool {
		calls := traffic.Calls(operation)
		if len(calls) > 0 {
			call = calls[len(calls)-1]
		}
		return len(calls) > 0 && call.Outcome != Pending
	})
	return call
}

func TestEveryFaultOverHTTP(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		fault   Fault
		path    string
		sees    string // empty: an error
		made    int32
		outcome Outcome
		status  int
	}{
		"no fault":                     {Fault{Operation: "other", Status: 500}, "/create", `201 {"made":"body"}`, 1, Answered, 201},
		"a delay":                      {Fault{Delay: time.Millisecond}, "/create", `201 {"made":"body"}`, 1, Answered, 201},
		"a status":                     {Fault{Operation: "create", Status: 429, Headers: map[string]string{"Retry-After": "7"}, Body: "slow"}, "/create", "429 7 slow", 0, Refused, 429},
		"a success that is no JSON":    {Fault{Status: 200, Body: "<html>"}, "/create", "200 <html>", 0, Refused, 200},
		"dropped before":               {Fault{Drop: true}, "/create", "", 0, Dropped, 0},
		"dropped after":                {Fault{Drop: true, After: true}, "/create", "", 1, DroppedDone, 0},
		"dropped after, of a stream":   {Fault{Drop: true, After: true}, "/stream", "", 1, DroppedDone, 0},
		"a status after the effect":    {Fault{Status: 504, After: true}, "/create", "504", 1, Replaced, 504},
		"hanging":                      {Fault{Hang: true}, "/create", "", 0, Hung, 0},
		"hanging after the effect":     {Fault{Hang: true, After: true}, "/create", "", 1, HungDone, 0},
		"hanging after, of a stream":   {Fault{Hang: true, After: true}, "/stream", "", 1, HungDone, 0},
		"a gRPC code, taken as a drop": {Fault{Code: codes.Unavailable}, "/create", "", 0, Refused, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cloud := newCloud(t)
			injected := cloud.Fail(c.fault)
			ctx := t.Context()
			if c.fault.Hang {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, 200*time.Millisecond)
				defer cancel()
			}
			sees, err := cloud.post(ctx, c.path)
			if (err != nil) != (c.sees == "") || sees != c.sees {
				t.Errorf("the client sees %q, %v", sees, err)
			}
			if c.fault.Hang != errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("hung until %v", err)
			}
			call := logged(t, &cloud.Traffic, "create")
			if made := cloud.made.Load(); made != c.made || call.Outcome != c.outcome || call.Status != c.status {
				t.Errorf("made %d, logged %+v", made, call)
			}
			if call.Body != "body" || call.Headers["X-Api-Key"][0] != "secret" || call.Path != c.path || call.Method != "POST" {
				t.Errorf("logged %+v", call)
			}
			if want := map[bool]int{true: 1}[c.fault.Operation != "other"]; injected.Fired() != want {
				t.Errorf("fired %d times", injected.Fired())
			}
		})
	}
}

func TestADelayedCallTakesItsTime(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t)
	cloud.Fail(Fault{Delay: 100 * time.Millisecond, Status: 500})
	start := time.Now()
	sees, err := cloud.post(t.Context(), "/create")
	if err != nil || sees != "500" || time.Since(start) < 100*time.Millisecond {
		t.Errorf("%q, %v after %v", sees, err, time.Since(start))
	}
	if took := logged(t, &cloud.Traffic, "create").Took; took < 100*time.Millisecond {
		t.Error(took)
	}
}

func TestFaultsAreMetInTurnAndAsOftenAsTold(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t)
	cloud.Fail(Fault{Operation: "create", Skip: 1, Count: 2, Status: 500})
	endless := cloud.Fail(Fault{Operation: "list", Status: 503})
	next := cloud.Fail(Fault{Operation: "create", Count: 1, Status: 502})
	see := func(path string) string {
		sees, err := cloud.post(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		return strings.Fields(sees)[0]
	}
	var got []string
	for range 5 {
		got = append(got, see("/create"))
	}
	if want := []string{"502", "500", "500", "201", "201"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	for range 3 {
		if got := see("/list"); got != "503" {
			t.Error(got)
		}
	}
	if endless.Fired() != 3 || next.Fired() != 1 {
		t.Errorf("fired %d and %d times", endless.Fired(), next.Fired())
	}
	endless.Remove()
	if got := see("/list"); got != "201" {
		t.Error(got)
	}
	cloud.Fail(Fault{Status: 500})
	cloud.ClearFaults()
	if got := see("/list"); got != "201" {
		t.Error(got)
	}
}

func TestTheLogIsAskedByOperationAndTime(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t)
	post := func(path string) {
		if _, err := cloud.post(t.Context(), path); err != nil {
			t.Fatal(err)
		}
	}
	post("/create?x=1")
	post("/list")
	post("/unnamed")
	middle := time.Now()
	post("/create")
	if cloud.Count() != 3 || cloud.Count("create") != 2 || cloud.Count("create", "list") != 3 || cloud.Count("unnamed") != 0 {
		t.Errorf("%+v", cloud.Calls())
	}
	if since := cloud.Since(middle, "create", "list"); len(since) != 1 || since[0].Path != "/create" {
		t.Errorf("%+v", since)
	}
	if first := cloud.Calls("create")[0]; first.Path != "/create?x=1" || first.Time.IsZero() {
		t.Errorf("%+v", first)
	}
	cloud.ClearCalls()
	if cloud.Count() != 0 {
		t.Error("calls were not forgotten")
	}
}

func TestALargeBodyIsLoggedInPart(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t)
	response, err := http.Post(cloud.url+"/create", "text/plain", strings.NewReader(strings.Repeat("x", 1<<20)))
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	if got := len(cloud.Calls()[0].Body); got != bodyLimit {
		t.Errorf("%d bytes", got)
	}
}

func TestTrafficIsSafeForManyAtOnce(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t)
	injected := cloud.Fail(Fault{Operation: "create", Count: 10, Status: 500})
	var group sync.WaitGroup
	for range 50 {
		group.Go(func() {
			if _, err := cloud.post(context.Background(), "/create"); err != nil {
				t.Error(err)
			}
			cloud.Calls()
		})
	}
	group.Wait()
	if cloud.Count() != 50 || injected.Fired() != 10 || cloud.made.Load() != 40 {
		t.Errorf("%d calls, %d faults, %d made", cloud.Count(), injected.Fired(), cloud.made.Load())
	}
}

// healthCloud is a gRPC service with a unary and a streaming call.
type healthCloud struct {
	grpc_health_v1.UnimplementedHealthServer
	Traffic
	made   atomic.Int32
	client grpc_health_v1.HealthClient
}

func (c *healthCloud) Check(context.Context, *grpc_health_v1.HealthCheckRequest) (*grpc_health_v1.HealthCheckResponse, error) {
	c.made.Add(1)
	return &grpc_health_v1.HealthCheckResponse{Status: grpc_health_v1.HealthCheckResponse_SERVING}, nil
}

func (c *healthCloud) Watch(_ *grpc_health_v1.HealthCheckRequest, stream grpc_health_v1.Health_WatchServer) error {
	c.made.Add(1)
	for {
		if err := stream.Send(&grpc_health_v1.HealthCheckResponse{Status: grpc_health_v1.HealthCheckResponse_SERVING}); err != nil {
			return err
		}
		select {
		case <-stream.Context().Done():
			return stream.Context().Err()
		case <-time.After(time.Millisecond):
		}
	}
}

func newHealthCloud(t *testing.T) *healthCloud {
	t.Helper()
	c := &healthCloud{}
	server := grpc.NewServer(grpc.WaitForHandlers(true), grpc.UnaryInterceptor(c.UnaryInterceptor()), grpc.StreamInterceptor(c.StreamInterceptor()))
	grpc_health_v1.RegisterHealthServer(server, c)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.Serve(listener) })
	conn, err := grpc.NewClient(listener.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		conn.Close()
		server.Stop()
		serving.Wait()
	})
	c.client = grpc_health_v1.NewHealthClient(conn)
	return c
}

// check and watch make a call and return the error of its first answer.
func (c *healthCloud) check(ctx context.Context) error {
	_, err := c.client.Check(ctx, &grpc_health_v1.HealthCheckRequest{Service: "asked"})
	return err
}

func (c *healthCloud) watch(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.client.Watch(ctx, &grpc_health_v1.HealthCheckRequest{Service: "asked"})
	if err == nil {
		_, err = stream.Recv()
	}
	return err
}

func TestEveryFaultOverGRPC(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		fault   Fault
		sees    codes.Code
		made    int32
		outcome Outcome
	}{
		"no fault":               {Fault{Operation: "other", Code: codes.Internal}, codes.OK, 1, Answered},
		"a delay":                {Fault{Delay: time.Millisecond}, codes.OK, 1, Answered},
		"a code":                 {Fault{Code: codes.NotFound, Message: "no"}, codes.NotFound, 0, Refused},
		"a code after":           {Fault{Code: codes.Internal, After: true}, codes.Internal, 1, Replaced},
		"dropped before":         {Fault{Drop: true}, codes.Unavailable, 0, Dropped},
		"dropped after":          {Fault{Drop: true, After: true}, codes.Unavailable, 1, DroppedDone},
		"hanging":                {Fault{Hang: true}, codes.DeadlineExceeded, 0, Hung},
		"hanging after":          {Fault{Hang: true, After: true}, codes.DeadlineExceeded, 1, HungDone},
		"an HTTP status, a drop": {Fault{Status: 500}, codes.Unavailable, 0, Refused},
	} {
		for operation, ask := range map[string]func(*healthCloud, context.Context) error{
			"Check": (*healthCloud).check, "Watch": (*healthCloud).watch,
		} {
			t.Run(name+", "+operation, func(t *testing.T) {
				t.Parallel()
				cloud := newHealthCloud(t)
				cloud.Fail(c.fault)
				ctx := metadata.AppendToOutgoingContext(t.Context(), "x-token", "secret")
				if c.fault.Hang {
					var cancel context.CancelFunc
					ctx, cancel = context.WithTimeout(ctx, 300*time.Millisecond)
					defer cancel()
				}
				if err := ask(cloud, ctx); status.Code(err) != c.sees {
					t.Errorf("the client sees %v", err)
				}
				call := logged(t, &cloud.Traffic, operation)
				if made := cloud.made.Load(); made != c.made || call.Outcome != c.outcome {
					t.Errorf("made %d, logged %+v", made, call)
				}
				if call.Headers["X-Token"][0] != "secret" || call.Path != "/grpc.health.v1.Health/"+operation || call.Method != "gRPC" {
					t.Errorf("logged %+v", call)
				}
				// The message of a stream that never reached the handler was not read.
				if (operation == "Check" || c.made > 0) && !strings.Contains(call.Body, "asked") {
					t.Errorf("logged the body %q", call.Body)
				}
			})
		}
	}
}

func TestAGRPCFaultCarriesItsDetails(t *testing.T) {
	t.Parallel()
	cloud := newHealthCloud(t)
	cloud.Fail(Fault{
		Code: codes.ResourceExhausted, Message: "too fast", Count: 1,
		Details: []proto.Message{&errdetails.RetryInfo{RetryDelay: durationpb.New(time.Second)}},
	})
	told := status.Convert(cloud.check(t.Context()))
	details := told.Details()
	if told.Message() != "too fast" || len(details) != 1 {
		t.Fatalf("%v %v", told, details)
	}
	if info, ok := details[0].(*errdetails.RetryInfo); !ok || info.RetryDelay.AsDuration() != time.Second {
		t.Errorf("%v", details)
	}
	if call := cloud.Calls("Check")[0]; call.Code != codes.ResourceExhausted {
		t.Errorf("logged %+v", call)
	}
	if err := cloud.check(t.Context()); err != nil {
		t.Errorf("after its count: %v", err)
	}
}

func TestScriptsSteerASimulatorOverHTTP(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t)
	control := httptest.NewServer(Control(&cloud.Traffic, func() any { return []string{"box-1"} }))
	t.Cleanup(control.Close)
	ask := func(method, path, body string) (int, string) {
		t.Helper()
		request, err := http.NewRequest(method, control.URL+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		answer, _ := io.ReadAll(response.Body)
		return response.StatusCode, strings.TrimSpace(string(answer))
	}
	post := func() string {
		sees, err := cloud.post(t.Context(), "/create")
		if err != nil {
			t.Fatal(err)
		}
		return sees
	}

	if code, body := ask("POST", "/_sim/faults", `{"operation":"create","status":429,"headers":{"Retry-After":"1"},"count":1,"delay_ms":1,"code":"UNAVAILABLE"}`); code != 204 {
		t.Fatal(code, body)
	}
	for _, wrong := range []string{`{"statuss":429}`, `nothing`} {
		if code, _ := ask("POST", "/_sim/faults", wrong); code != 400 {
			t.Errorf("%s is taken for a fault", wrong)
		}
	}
	if sees := post(); sees != "429 1" {
		t.Error(sees)
	}
	if sees := post(); !strings.HasPrefix(sees, "201") {
		t.Error(sees)
	}
	if code, body := ask("GET", "/_sim/faults", ""); code != 200 || !strings.Contains(body, `"fired":1`) || !strings.Contains(body, `"create"`) {
		t.Error(code, body)
	}
	var calls []Call
	_, body := ask("GET", "/_sim/calls?operation=create&operation=list", "")
	if err := json.Unmarshal([]byte(body), &calls); err != nil || len(calls) != 2 || calls[0].Status != 429 || calls[0].Headers["X-Api-Key"] == nil {
		t.Error(err, body)
	}
	if _, body := ask("GET", "/_sim/calls?since="+time.Now().UTC().Format(time.RFC3339Nano), ""); body != "[]" {
		t.Error(body)
	}
	if code, _ := ask("GET", "/_sim/calls?since=yesterday", ""); code != 400 {
		t.Error(code)
	}
	if _, body := ask("GET", "/_sim/boxes", ""); body != `["box-1"]` {
		t.Error(body)
	}
	cloud.Fail(Fault{Status: 500})
	ask("DELETE", "/_sim/faults", "")
	if _, body := ask("GET", "/_sim/faults", ""); body != "[]" {
		t.Error(body)
	}
	ask("DELETE", "/_sim/calls", "")
	if cloud.Count() != 0 {
		t.Error("calls were not forgotten")
	}
}
