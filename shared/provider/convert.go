package provider

import (
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	pb "github.com/berth-dev/berth/shared/proto/berth/provider/v1"
)

// A table maps a domain word to its number on the wire. A number that this side does not know reads as "", which the
// callers treat as a broken or unknown answer, never as a default.
type table[D comparable, W comparable] map[D]W

func (t table[D, W]) domain(w W) D {
	for d, have := range t {
		if have == w {
			return d
		}
	}
	var unknown D
	return unknown
}

var (
	capabilityTable = table[Capability, pb.Capability]{
		CapabilityList:    pb.Capability_CAPABILITY_LIST,
		CapabilityRenew:   pb.Capability_CAPABILITY_RENEW,
		CapabilitySuspend: pb.Capability_CAPABILITY_SUSPEND,
		CapabilityDestroy: pb.Capability_CAPABILITY_DESTROY,
		CapabilityLogs:    pb.Capability_CAPABILITY_LOGS,
	}
	typeTable = table[AttributeType, pb.AttributeType]{
		TypeString:     pb.AttributeType_ATTRIBUTE_TYPE_STRING,
		TypeBool:       pb.AttributeType_ATTRIBUTE_TYPE_BOOL,
		TypeInteger:    pb.AttributeType_ATTRIBUTE_TYPE_INTEGER,
		TypeNumber:     pb.AttributeType_ATTRIBUTE_TYPE_NUMBER,
		TypeDuration:   pb.AttributeType_ATTRIBUTE_TYPE_DURATION,
		TypeStringList: pb.AttributeType_ATTRIBUTE_TYPE_STRING_LIST,
		TypeStringMap:  pb.AttributeType_ATTRIBUTE_TYPE_STRING_MAP,
	}
	stateTable = table[State, pb.SandboxState]{
		StateStarting:  pb.SandboxState_SANDBOX_STATE_STARTING,
		StateRunning:   pb.SandboxState_SANDBOX_STATE_RUNNING,
		StateSuspended: pb.SandboxState_SANDBOX_STATE_SUSPENDED,
		StateGone:      pb.SandboxState_SANDBOX_STATE_GONE,
		StateFailed:    pb.SandboxState_SANDBOX_STATE_FAILED,
		StateUnknown:   pb.SandboxState_SANDBOX_STATE_UNKNOWN,
	}
	originTable = table[Origin, pb.Origin]{
		OriginCreated:  pb.Origin_ORIGIN_CREATED,
		OriginAttached: pb.Origin_ORIGIN_ATTACHED,
		OriginWoken:    pb.Origin_ORIGIN_WOKEN,
	}
	pingTable = table[PingStatus, pb.PingStatus]{
		PingAlive:   pb.PingStatus_PING_STATUS_ALIVE,
		PingNotYet:  pb.PingStatus_PING_STATUS_NOT_YET,
		PingExited:  pb.PingStatus_PING_STATUS_EXITED,
		PingStopped: pb.PingStatus_PING_STATUS_STOPPED,
		PingGone:    pb.PingStatus_PING_STATUS_GONE,
		PingDenied:  pb.PingStatus_PING_STATUS_DENIED,
	}
)

func durationToWire(d time.Duration) *durationpb.Duration {
	if d == 0 {
		return nil
	}
	return durationpb.New(d)
}

func timeToWire(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

// timeFromWire reads a time that JSON could not carry, in whichever time zone and however rounded, as none: an end so far
// away is never, and an invalid one tells nothing.
func timeFromWire(t *timestamppb.Timestamp) time.Time {
	if t == nil || !t.IsValid() {
		return time.Time{}
	}
	at := t.AsTime()
	if year := at.Year(); year < 2 || year > 9998 {
		return time.Time{}
	}
	return at
}

// text replaces invalid UTF-8, which protobuf would refuse with an error that helps nobody.
func text(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }

func texts(lines []string) []string {
	var valid []string
	for _, line := range lines {
		valid = append(valid, text(line))
	}
	return valid
}

func textMap(m map[string]string) map[string]string {
	if len(m) == 0 {
		return nil
	}
	valid := make(map[string]string, len(m))
	for k, v := range m {
		valid[text(k)] = text(v)
	}
	return valid
}

func descriptionToWire(d Description) *pb.DescribeResponse {
	w := &pb.DescribeResponse{Name: d.Name, Version: d.Version, Summary: text(d.Summary), EndpointHeaders: d.EndpointHeaders}
	for _, c := range d.Capabilities {
		w.Capabilities = append(w.Capabilities, capabilityTable[c])
	}
	for _, a := range d.Attributes {
		w.Attributes = append(w.Attributes, &pb.Attribute{
			Name: a.Name, Type: typeTable[a.Type], Required: a.Required, Sensitive: a.Sensitive,
			DefaultJson: a.Default, Env: a.Env, OneOf: a.OneOf, Doc: text(a.Doc),
		})
	}
	return w
}

// descriptionFromWire leaves out capabilities it does not know: they are a newer plugin's, and not asked for.
func descriptionFromWire(w *pb.DescribeResponse) Description {
	d := Description{
		Name: w.GetName(), Version: w.GetVersion(), Summary: Shorten(w.GetSummary(), detailBytes), EndpointHeaders: w.GetEndpointHeaders(),
	}
	for _, c := range w.GetCapabilities() {
		if known := capabilityTable.domain(c); known != "" {
			d.Capabilities = append(d.Capabilities, known)
		}
	}
	for _, a := range w.GetAttributes() {
		d.Attributes = append(d.Attributes, Attribute{
			Name: a.GetName(), Type: typeTable.domain(a.GetType()), Required: a.GetRequired(), Sensitive: a.GetSensitive(),
			Default: a.GetDefaultJson(), Env: a.GetEnv(), OneOf: a.GetOneOf(), Doc: Shorten(a.GetDoc(), messageBytes),
		})
	}
	return d
}

func serverToWire(s Server) *pb.Server {
	w := &pb.Server{
		Command: texts(s.Command), Port: int32(s.Port), Env: textMap(s.Env), Workdir: text(s.Workdir),
		Health: healthToWire(s.Health), AllowPublic: s.AllowPublic,
	}
	for name, port := range s.ExtraPorts {
		if w.ExtraPorts == nil {
			w.ExtraPorts = map[string]int32{}
		}
		w.ExtraPorts[name] = int32(port)
	}
	return w
}

func serverFromWire(w *pb.Server) Server {
	s := Server{
		Command: w.GetCommand(), Port: int(w.GetPort()), Env: w.GetEnv(), Workdir: w.GetWorkdir(),
		Health: healthFromWire(w.GetHealth()), AllowPublic: w.GetAllowPublic(),
	}
	for name, port := range w.GetExtraPorts() {
		if s.ExtraPorts == nil {
			s.ExtraPorts = map[string]int{}
		}
		s.ExtraPorts[name] = int(port)
	}
	return s
}

func healthToWire(h HealthCheck) *pb.HealthCheck {
	return &pb.HealthCheck{Paths: texts(h.Paths), JsonFields: textMap(h.JSONFields), Timeout: durationToWire(h.Timeout)}
}

func healthFromWire(w *pb.HealthCheck) HealthCheck {
	return HealthCheck{Paths: w.GetPaths(), JSONFields: w.GetJsonFields(), Timeout: w.GetTimeout().AsDuration()}
}

func endpointToWire(e Endpoint) *pb.Endpoint {
	return &pb.Endpoint{Url: text(e.URL), Headers: textMap(e.Headers), ExpiresAt: timeToWire(e.ExpiresAt)}
}

func endpointFromWire(w *pb.Endpoint) Endpoint {
	return Endpoint{URL: w.GetUrl(), Headers: w.GetHeaders(), ExpiresAt: timeFromWire(w.GetExpiresAt())}
}

func endpointsToWire(e Endpoints) *pb.Endpoints {
	w := &pb.Endpoints{Server: endpointToWire(e.Server)}
	for name, extra := range e.Extra {
		if w.Extra == nil {
			w.Extra = map[string]*pb.Endpoint{}
		}
		w.Extra[name] = endpointToWire(extra)
	}
	return w
}

func endpointsFromWire(w *pb.Endpoints) Endpoints {
	e := Endpoints{Server: endpointFromWire(w.GetServer())}
	for name, extra := range w.GetExtra() {
		if e.Extra == nil {
			e.Extra = map[string]Endpoint{}
		}
		e.Extra[name] = endpointFromWire(extra)
	}
	return e
}

func sandboxToWire(s Sandbox) *pb.Sandbox {
	w := &pb.Sandbox{
		Id: text(s.ID), State: stateTable[s.State], Origin: originTable[s.Origin], Session: text(s.Session),
		Owner: text(s.Owner), Attempt: text(s.Attempt), Labels: textMap(s.Labels), CreatedAt: timeToWire(s.CreatedAt),
		ExpiresAt: timeToWire(s.ExpiresAt), Detail: text(s.Detail),
	}
	if s.Endpoints != nil {
		w.Endpoints = endpointsToWire(*s.Endpoints)
	}
	return w
}

// sandboxFromWire reads a state that is missing or newer than this side as StateUnknown.
func sandboxFromWire(w *pb.Sandbox) Sandbox {
	s := Sandbox{
		ID: w.GetId(), State: stateTable.domain(w.GetState()), Origin: originTable.domain(w.GetOrigin()),
		Session: w.GetSession(), Owner: w.GetOwner(), Attempt: w.GetAttempt(), Labels: w.GetLabels(),
		CreatedAt: timeFromWire(w.GetCreatedAt()), ExpiresAt: timeFromWire(w.GetExpiresAt()),
		Detail: Shorten(w.GetDetail(), detailBytes),
	}
	if s.State == "" {
		s.State = StateUnknown
	}
	if w.GetEndpoints() != nil {
		endpoints := endpointsFromWire(w.GetEndpoints())
		s.Endpoints = &endpoints
	}
	return s
}

func sandboxesFromWire(list []*pb.Sandbox) []Sandbox {
	var sandboxes []Sandbox
	for _, w := range list {
		sandboxes = append(sandboxes, sandboxFromWire(w))
	}
	return sandboxes
}

func pingToWire(p PingResult) *pb.PingResponse {
	return &pb.PingResponse{
		Status: pingTable[p.Status], Reason: text(p.Reason), ExitCode: exitCodeToWire(p.ExitCode), LogTail: texts(Tail(p.LogTail)),
	}
}

func pingFromWire(w *pb.PingResponse) PingResult {
	p := PingResult{
		Status: pingTable.domain(w.GetStatus()), Reason: Shorten(w.GetReason(), messageBytes), LogTail: texts(Tail(w.GetLogTail())),
	}
	if w.ExitCode != nil {
		code := int(w.GetExitCode())
		p.ExitCode = &code
	}
	return p
}

func exitCodeToWire(code *int) *int32 {
	if code == nil {
		return nil
	}
	wire := int32(*code)
	return &wire
}
