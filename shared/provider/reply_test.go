package provider

import (
	"context"
	"fmt"
	"maps"
	"regexp"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"

	pb "github.com/berth-dev/berth/shared/proto/berth/provider/v1"
)

// idForm is what the document says of ids.
var idForm = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._:@/+=~%,-]{0,255}$`)

var made = Sandbox{ID: "sb-1", State: StateRunning, Origin: OriginCreated, Owner: "me", Session: "s1", Attempt: "a1"}

func wantInvalid(t *testing.T, what string, err error) {
	t.Helper()
	if e := AsError(err); e == nil || e.Code != CodeInternal || e.Reason != ReasonInvalidReply {
		t.Errorf("%s: got %v", what, err)
	}
}

func TestASandboxIsHeldAgainstTheRequest(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*Sandbox){
		"no id":             func(s *Sandbox) { s.ID = "" },
		"a long id":         func(s *Sandbox) { s.ID = strings.Repeat("x", 257) },
		"an id that prints": func(s *Sandbox) { s.ID = "sb\x1b[2J" },
		"an id of lines":    func(s *Sandbox) { s.ID = "sb-1\nsb-2" },
		"an id as option":   func(s *Sandbox) { s.ID = "--all" },
		"an id for a shell": func(s *Sandbox) { s.ID = "$(id)" },
		"another owner":     func(s *Sandbox) { s.Owner = "them" },
		"no owner":          func(s *Sandbox) { s.Owner = "" },
		"another session":   func(s *Sandbox) { s.Session = "s2" },
		"not running":       func(s *Sandbox) { s.State = StateSuspended },
		"no state":          func(s *Sandbox) { s.State = "" },
		"no origin":         func(s *Sandbox) { s.Origin = "" },
		"another attempt":   func(s *Sandbox) { s.Attempt = "a2" },
		"no attempt":        func(s *Sandbox) { s.Attempt = "" },
		"many labels": func(s *Sandbox) {
			s.Labels = map[string]string{}
			for i := range labelCount + 1 {
				s.Labels[fmt.Sprint(i)] = ""
			}
		},
		"large labels": func(s *Sandbox) { s.Labels = map[string]string{"a": strings.Repeat("x", labelBytes)} },
	} {
		s := made
		change(&s)
		_, err := connect(t, &fake{sandbox: s}).Create(t.Context(), CreateRequest{Owner: "me", Session: "s1", Attempt: "a1"})
		wantInvalid(t, name, err)
		if strings.HasPrefix(name, "another") {
			equal(t, name+": sandbox id in the error", AsError(err).SandboxID, "sb-1")
		}
		if strings.Contains(err.Error(), "\x1b") || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %q", name, err)
		}
	}
	c := connect(t, &fake{sandbox: made})
	_, err := c.Create(t.Context(), CreateRequest{Owner: "me", Session: "s1", Attempt: "a1"})
	equal(t, "a reply as it should be", err, nil)
	_, err = c.Attach(t.Context(), AttachRequest{Owner: "me", Session: "s1"})
	wantInvalid(t, "Attach that created", err)
	adopted := made
	adopted.Origin, adopted.Attempt = OriginAttached, "an earlier one"
	_, err = connect(t, &fake{sandbox: adopted}).Create(t.Context(), CreateRequest{Owner: "me", Session: "s1", Attempt: "a1"})
	equal(t, "a sandbox that is adopted", err, nil)
}

func TestEndpointsAreHeldAgainstTheRequest(t *testing.T) {
	t.Parallel()
	server := Server{ExtraPorts: map[string]int{"vnc": 8002}}
	good := func(u string, headers map[string]string) Endpoints {
		return Endpoints{Server: Endpoint{URL: u, Headers: headers}, Extra: map[string]Endpoint{"vnc": {URL: "https://vnc.example:8002/base"}}}
	}
	many := map[string]string{}
	for i := range headerCount + 1 {
		many[fmt.Sprint("X-", i)] = ""
	}
	bad := map[string]Endpoints{
		"many headers":           good("http://h", many),
		"large headers":          good("http://h", map[string]string{"A": strings.Repeat("x", headerBytes)}),
		"header twice":           good("http://h", map[string]string{"X-Key": "1", "x-key": "2"}),
		"header without name":    good("http://h", map[string]string{"": "1"}),
		"header with a colon":    good("http://h", map[string]string{"A:": "1"}),
		"header with a letter":   good("http://h", map[string]string{"Ä": "1"}),
		"header with a new line": good("http://h", map[string]string{"A": "b\r\nC: d"}),
		"header with a zero":     good("http://h", map[string]string{"A": "b\x00"}),
		"extra port missing":     {Server: Endpoint{URL: "http://h"}},
	}
	for _, u := range []string{
		"", "/here", "host", "ftp://host", "file:///etc/passwd", "file:x", "http:host", "http://", "https:///path", "http://host/", "//host/x",
		"http://user@host", "http://user:secret@host", "http://host#f", "http://host/x#", "http://host?q=1", "http://host/?",
		"http://ho st", "http://host/a b", "http://höst", "http://host\\x", "http://host:x", "http://host:0", "http://host:65536", "http://host:",
		"http://[::1", "http://-h", "javascript:alert(1)", "http://h/\x1b[2J", "http://h/\nx", "http://" + strings.Repeat("x", urlBytes),
	} {
		bad["URL "+u] = good(u, nil)
		extra := good("http://h", nil)
		extra.Extra["vnc"] = Endpoint{URL: u}
		bad["extra URL "+u] = extra
	}
	for name, e := range bad {
		c := connect(t, &fake{endpoints: e, sandbox: Sandbox{
			ID: "sb-1", State: StateRunning, Origin: OriginAttached, Owner: "me", Session: "s1", Endpoints: &e,
		}})
		_, err := c.StartServer(t.Context(), StartServerRequest{Server: server})
		wantInvalid(t, name, err)
		if strings.Contains(fmt.Sprint(err), "secret") {
			t.Errorf("%s: the error quotes it", name)
		}
		_, err = c.Attach(t.Context(), AttachRequest{Owner: "me", Session: "s1", Server: server})
		wantInvalid(t, name+", by Attach", err)
	}
	unasked := good("http://h", nil)
	unasked.Extra["shell"] = Endpoint{URL: "file:///etc/passwd"}
	started, err := connect(t, &fake{endpoints: unasked}).StartServer(t.Context(), StartServerRequest{Server: server})
	equal(t, "an extra port that nobody asked for", []any{started, err}, []any{good("http://h", nil), nil})
	for _, u := range []string{"http://127.0.0.1:1", "http://[::1]:8000", "https://8000-abc.e2b.app", "https://x_y.example/proxy/8000", "HTTPS://Host", "http://localhost"} {
		_, err := connect(t, &fake{endpoints: good(u, map[string]string{"A": "b\tc é", "x-b": ""})}).StartServer(t.Context(), StartServerRequest{Server: server})
		equal(t, u, err, nil)
	}
}

func TestOddSandboxesAreLeftOutOfAListAndTheRestIsThere(t *testing.T) {
	t.Parallel()
	listed := func(id, owner, session string) Sandbox {
		return Sandbox{ID: id, Owner: owner, Session: session, State: StateRunning}
	}
	list := func(request ListRequest, sandboxes ...Sandbox) (string, error) {
		got, err := connect(t, &fake{sandboxes: sandboxes}).List(t.Context(), request)
		var ids []string
		for _, s := range got {
			ids = append(ids, s.ID)
		}
		return strings.Join(ids, " "), err
	}
	a, b := listed("a", "me", "s1"), listed("b", "me", "s2")
	for name, odd := range map[string]Sandbox{
		"no id": listed("", "me", "s3"), "an id that prints": listed("\x1b", "me", "s3"), "another owner": listed("c", "them", "s3"),
		"no owner": listed("c", "", "s3"), "a name that is too long": listed("c", "me", strings.Repeat("s", nameBytes+1)),
		"the same id for another session": listed("a", "me", "s3"),
	} {
		ids, err := list(ListRequest{Owner: "me"}, a, odd, b)
		equal(t, name, ids, "a b")
		wantInvalid(t, name, err)
	}
	ids, err := list(ListRequest{Owner: "me"}, a, b, a)
	equal(t, "the same sandbox on two pages", []any{ids, err}, []any{"a b", nil})
	ids, err = list(ListRequest{Owner: "me", Session: "s2"}, a, listed("", "them", "s3"), b)
	equal(t, "what was not asked for is not looked at", []any{ids, err}, []any{"b", nil})
	ids, err = list(ListRequest{Owner: "me", AllOwners: true}, a, listed("c", "them", "s1"))
	equal(t, "all owners", []any{ids, err}, []any{"a c", nil})
	_, err = list(ListRequest{Owner: "me"}, listed("", "me", "s1"), listed("", "me", "s1"))
	if !strings.Contains(err.Error(), "2 sandboxes were left out") {
		t.Errorf("got %v", err)
	}
}

// endless lists without end, in messages of its own choice.
type endless struct {
	pb.UnimplementedHousekeepingServer
	message func(n int) *pb.ListResponse
}

func (e endless) List(_ *pb.ListRequest, stream grpc.ServerStreamingServer[pb.ListResponse]) error {
	for n := 0; ; n++ {
		if err := stream.Send(e.message(n)); err != nil {
			return err
		}
	}
}

func TestAListWithoutEndIsCutAndSaysSo(t *testing.T) {
	t.Parallel()
	page := func(n int, session string) []Sandbox {
		var sandboxes []Sandbox
		for i := range 1000 {
			sandboxes = append(sandboxes, Sandbox{ID: fmt.Sprintf("%d-%d", n, i), Owner: "me", Session: session})
		}
		return sandboxes
	}
	same := func(sandboxes []Sandbox) func(int) []Sandbox { return func(int) []Sandbox { return sandboxes } }
	for name, test := range map[string]struct {
		page  func(int) []Sandbox
		size  int // of a message
		says  string
		least int
	}{
		"many":              {func(n int) []Sandbox { return page(n, "s1") }, 10_000, "50000 sandboxes", listCount},
		"large":             {func(n int) []Sandbox { return page(n, "s1") }, 8 << 20, "64 MiB", 7000},
		"of other sessions": {same(page(0, "s2")), 10_000, "64 MiB", 0},
		"the same again":    {same(page(0, "s1")), 10_000, "64 MiB", 1000},
		"broken":            {same(make([]Sandbox, 1000)), 2000, "64 MiB", 0},
		"nothing at all":    {same(nil), 0, "64 MiB", 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := listing{request: ListRequest{Owner: "me", Session: "s1"}, seen: map[string]int{}}
			var err error
			for n := 0; err == nil; n++ {
				err = l.add(test.page(n), test.size)
			}
			if e := AsError(err); e.Reason != ReasonListCut || !strings.Contains(e.Message, "more than "+test.says) {
				t.Errorf("got %v", err)
			}
			if len(l.sandboxes) < test.least || len(l.sandboxes) > listCount {
				t.Errorf("%d sandboxes were read", len(l.sandboxes))
			}
		})
	}
}

func TestTheCallOfAListThatIsCutIsEnded(t *testing.T) {
	t.Parallel()
	c := NewClient(dial(t, func(r grpc.ServiceRegistrar) {
		pb.RegisterHousekeepingServer(r, endless{message: func(n int) *pb.ListResponse {
			if n == 0 {
				return &pb.ListResponse{Sandboxes: []*pb.Sandbox{{Id: "sb-1", Owner: "me"}}}
			}
			return &pb.ListResponse{}
		}})
	}))
	got, err := c.List(t.Context(), ListRequest{Owner: "me"})
	if e := AsError(err); e == nil || e.Reason != ReasonListCut {
		t.Errorf("got %v", err)
	}
	equal(t, "sandboxes", len(got), 1)
}

func TestAListThatBreaksOffKeepsWhatWasRead(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	c := NewClient(dial(t, func(r grpc.ServiceRegistrar) {
		pb.RegisterHousekeepingServer(r, endless{message: func(n int) *pb.ListResponse {
			if n == 1 {
				cancel()
				<-ctx.Done()
			}
			return &pb.ListResponse{Sandboxes: []*pb.Sandbox{{Id: "a", Owner: "me"}}}
		}})
	}))
	got, err := c.List(ctx, ListRequest{Owner: "me"})
	equal(t, "code", CodeOf(err), CodeCanceled)
	if len(got) > 1 {
		t.Errorf("%d sandboxes", len(got))
	}
}

func TestTimesThatJSONCannotCarryAreNone(t *testing.T) {
	t.Parallel()
	for what, w := range map[string]*timestamppb.Timestamp{
		"the last moment of protobuf": {Seconds: 253402300799, Nanos: 999999900},
		"the year 10000":              {Seconds: 253402300800},
		"far away":                    {Seconds: 1 << 62},
		"the year 0":                  {Seconds: -62135596801},
		"the first moment":            {Seconds: -62135596800},
		"before all years":            {Seconds: -1 << 62},
		"nanoseconds out of range":    {Seconds: 1, Nanos: -1},
	} {
		if got := timeFromWire(w); !got.IsZero() {
			t.Errorf("%s: got %s", what, got)
		}
	}
	equal(t, "a time", timeFromWire(timestamppb.New(time.Unix(1e9, 5))), time.Unix(1e9, 5).UTC())
}

func TestTextForPeopleIsCut(t *testing.T) {
	t.Parallel()
	long, longest := strings.Repeat("é", 1<<14), strings.Repeat("x", logBytes)
	c := connect(t, &fake{
		ping: PingResult{Status: PingExited, Reason: long, LogTail: []string{long, long}}, lines: []string{longest, "the last"},
		sandbox: Sandbox{ID: "a", State: StateRunning, Origin: OriginAttached, Detail: long},
	})
	ping, err := c.Ping(t.Context(), PingRequest{})
	equal(t, "Ping's error", err, nil)
	if len(ping.Reason) > messageBytes+len("…") || len(strings.Join(ping.LogTail, "\n")) > tailBytes+len("\uFFFD") {
		t.Errorf("a reason of %d bytes, a log of %d", len(ping.Reason), len(strings.Join(ping.LogTail, "\n")))
	}
	lines, err := c.Logs(t.Context(), LogsRequest{Lines: 2})
	equal(t, "Logs' error", err, nil)
	equal(t, "the lines for which there is room", lines, []string{"the last"})
	lines, err = c.Logs(t.Context(), LogsRequest{Lines: -1})
	equal(t, "no lines", []any{len(lines), err}, []any{0, nil})
	sandbox, err := c.Attach(t.Context(), AttachRequest{})
	equal(t, "Attach's error", err, nil)
	if len(sandbox.Detail) > detailBytes+len("…") {
		t.Errorf("a detail of %d bytes", len(sandbox.Detail))
	}
}

func TestADescriptionMustBeFitForAConfiguration(t *testing.T) {
	t.Parallel()
	good := Description{Name: "acme", Version: "1.2.3 (test)", Attributes: []Attribute{{Name: "size", Type: TypeString, Default: `"small"`}}}
	equal(t, "a description", checkDescription(good), nil)
	for what, change := range map[string]func(*Description){
		"no name":              func(d *Description) { d.Name = "" },
		"a name that prints":   func(d *Description) { d.Name = "a\x1b[31m" },
		"a version of lines":   func(d *Description) { d.Version = "1\n2" },
		"a long version":       func(d *Description) { d.Version = strings.Repeat("1", 129) },
		"an attribute's name":  func(d *Description) { d.Attributes[0].Name = "a b" },
		"an attribute's type":  func(d *Description) { d.Attributes[0].Type = "" },
		"an attribute twice":   func(d *Description) { d.Attributes = append(d.Attributes, d.Attributes[0]) },
		"a header of lines":    func(d *Description) { d.EndpointHeaders = []string{"A", "B\r\nC"} },
		"a default of no kind": func(d *Description) { d.Attributes[0].Default = "small" },
		"attributes without end": func(d *Description) {
			for i := range attributeCount {
				d.Attributes = append(d.Attributes, Attribute{Name: fmt.Sprint("a", i), Type: TypeString})
			}
		},
	} {
		d := good
		d.Attributes = append([]Attribute{}, good.Attributes...)
		change(&d)
		wantInvalid(t, what, checkDescription(d))
	}
}

func FuzzSandboxReply(f *testing.F) {
	f.Add("sb-1", "me", "s1", "a1", "http://h", "X-Key", "v", "vnc")
	f.Add("\x1b", "them", "", "", "file:///x", "A:", "\r\n", "ssh")
	f.Fuzz(func(t *testing.T, id, owner, session, attempt, u, header, value, extra string) {
		w := &pb.Sandbox{
			Id: id, Owner: owner, Session: session, Attempt: attempt, State: pb.SandboxState_SANDBOX_STATE_RUNNING, Origin: pb.Origin_ORIGIN_CREATED,
			Endpoints: &pb.Endpoints{
				Server: &pb.Endpoint{Url: u, Headers: map[string]string{header: value}},
				Extra:  map[string]*pb.Endpoint{extra: {Url: u}},
			},
		}
		s := sandboxFromWire(w)
		if checkSandbox("Create", s, "me", "s1") == nil && (s.Owner != "me" || s.Session != "s1" || !idForm.MatchString(s.ID)) {
			t.Errorf("%+v is believed", s)
		}
		asked := Server{ExtraPorts: map[string]int{"vnc": 1}}
		if e, err := checkEndpoints("Attach", *s.Endpoints, asked); err == nil {
			if extra != "vnc" || len(e.Extra) != 1 || !strings.HasPrefix(strings.ToLower(u), "http") || strings.ContainsAny(header+value+u, "\r\n\x00") {
				t.Errorf("%+v is believed", s.Endpoints)
			}
		}
		l := listing{request: ListRequest{Owner: "me"}, seen: map[string]int{}}
		if err := l.add([]Sandbox{s, s, {ID: id}}, 1); err != nil {
			t.Error(err)
		}
		for got := range maps.Keys(l.seen) {
			if !idForm.MatchString(got) || owner != "me" {
				t.Errorf("%q of %q is listed", got, owner)
			}
		}
	})
}
