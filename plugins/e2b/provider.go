package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/berth-dev/berth/plugins/e2b/envd"
	"github.com/berth-dev/berth/shared/provider"
)

const (
	// labelName is the metadata entry by which a session's sandbox is found: E2B has no names. Its value is safe in
	// every encoding.
	labelName = "berth-name"
	// defaultPort is the server's when it asks for none.
	defaultPort = 8000
	// defaultLifetime is for a caller that names none: a sandbox at E2B always has an end.
	defaultLifetime = time.Hour
	// rememberedLimit bounds what is remembered of sandboxes. What is forgotten is asked for again.
	rememberedLimit = 20_000
)

// idForm is what E2B's sandbox ids look like: they become part of paths and host names.
var idForm = regexp.MustCompile(`^[a-z0-9]+(-[a-z0-9]+)?$`)

// E2B makes sandboxes at E2B. Everything that matters is kept there, in the sandboxes' metadata: what this process
// remembers only saves calls.
type E2B struct {
	log    hclog.Logger
	config Config
	times  times
	api    *api
	envd   *http.Client
	probe  *http.Client

	mutex   sync.Mutex
	opened  map[string]opened // by sandbox
	silence map[string]*silence
}

// What E2B can do: everything.
var _ interface {
	provider.Provider
	provider.Lister
	provider.Renewer
	provider.Suspender
	provider.Destroyer
	provider.LogReader
	io.Closer
} = (*E2B)(nil)

// opened is what opens a sandbox, and whose it is.
type opened struct {
	access
	owner string
}

func newE2B(config Config, log hclog.Logger, times times) *E2B {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.MaxIdleConnsPerHost = transport.MaxIdleConns // all calls go to one host
	control := &http.Client{
		Transport: transport,
		// A redirect would carry the API key to wherever it leads.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	inside := &http.Client{
		Transport:     listener{http.DefaultTransport.(*http.Transport).Clone()},
		CheckRedirect: stayInside,
	}
	probe := provider.NewProbeClient()
	probe.Transport = listener{probe.Transport}
	return &E2B{
		log: log, config: config, times: times, envd: inside, probe: probe,
		api:    &api{http: control, base: config.APIURL, key: config.APIKey, log: log, times: times},
		opened: map[string]opened{}, silence: map[string]*silence{},
	}
}

// stayInside follows redirects within a host's domain only: the sandbox's token is in a header that would go along.
func stayInside(request *http.Request, before []*http.Request) error {
	first := before[0].URL
	_, domain, _ := strings.Cut(first.Hostname(), ".")
	same := request.URL.Hostname() == first.Hostname() || domain != "" && strings.HasSuffix(request.URL.Hostname(), "."+domain)
	if !same || request.URL.Scheme != first.Scheme || len(before) > 3 {
		return http.ErrUseLastResponse
	}
	return nil
}

// Create makes the session's sandbox, or adopts the one that is there. E2B has no unique names, and not every cluster
// knows idempotency keys, so what is there is looked at before and after, and when an answer was lost.
func (p *E2B) Create(ctx context.Context, req provider.CreateRequest) (provider.Sandbox, error) {
	lifetime := lifetimeOf(req.Lifetime)
	present, err := p.find(ctx, req.Owner, req.Session)
	if err != nil {
		return provider.Sandbox{}, err
	}
	if len(present) > 0 {
		sandbox, err := p.wakeOne(ctx, present, req.Server, lifetime)
		if provider.CodeOf(err) != provider.CodeNotFound {
			return sandbox, err
		}
	}

	made, err := p.make(ctx, req, lifetime)
	if err == nil {
		var sandbox provider.Sandbox
		if sandbox, err = p.keepOne(ctx, req, made, lifetime); err == nil {
			return sandbox, nil
		}
	}
	return provider.Sandbox{}, p.undo(ctx, req, made.SandboxID, err)
}

// make creates a sandbox. An answer that was lost is settled by looking for the attempt before anything is created
// again.
func (p *E2B) make(ctx context.Context, req provider.CreateRequest, lifetime time.Duration) (access, error) {
	labels := req.AllLabels()
	labels[labelName] = provider.SandboxName(req.Owner, req.Session)
	request := newSandbox{
		TemplateID: p.config.Template, Timeout: seconds(lifetime), Metadata: labels,
		AutoPause: p.config.OnTimeout == "pause", Network: network{AllowPublicTraffic: p.config.Public},
	}
	if !p.config.Internet {
		no := false
		request.Internet = &no
	}
	sum := sha256.Sum256([]byte(req.Owner + "\x00" + req.Session + "\x00" + req.Attempt))
	key := "berth-" + hex.EncodeToString(sum[:16])
	var made access
	err := persist(ctx, p.times, func() (again bool, err error) {
		made, err = p.api.create(ctx, request, key)
		if err == nil || !mayHaveWorked(err) || ctx.Err() != nil {
			return limited(err), err
		}
		p.log.Debug("the answer to a create was lost, looking for what it made", "attempt", req.Attempt)
		id, lookErr := p.findAttempt(ctx, req)
		switch {
		case lookErr != nil:
			return false, lookErr // creating again blindly could make a second one
		case id == "":
			return true, err
		}
		made, _, err = p.api.connect(ctx, id, lifetime)
		made.SandboxID = id
		return false, err
	})
	if err == nil && tooOld(made.EnvdVersion) {
		err = provider.Errorf(provider.CodeFailed, "the template %q has envd %s, which is too old: build it anew", p.config.Template, made.EnvdVersion)
	}
	return made, err
}

// findAttempt looks for the sandbox of a Create whose answer was lost, for a moment: listings lag behind.
func (p *E2B) findAttempt(ctx context.Context, req provider.CreateRequest) (id string, err error) {
	for deadline := time.Now().Add(p.times.settle); ; {
		present, err := p.find(ctx, req.Owner, req.Session)
		if err != nil {
			return "", err
		}
		for _, sandbox := range present {
			if sandbox.Metadata[provider.LabelAttempt] == req.Attempt {
				return sandbox.SandboxID, nil
			}
		}
		if time.Now().After(deadline) {
			return "", nil
		}
		if err := pause(ctx, p.times.settle/5); err != nil {
			return "", err
		}
	}
}

// keepOne lets one sandbox remain where two processes created one for the same session at the same time, and returns
// it. Each process removes its own only: the one that is not the oldest, which all see alike. Listings lag, so it looks
// until its own is listed: by then every older one is too. Should they be listed in another order than they were made
// in, so that the younger one's maker saw no reason to give way, the older one's maker gives way after a while.
func (p *E2B) keepOne(ctx context.Context, req provider.CreateRequest, made access, lifetime time.Duration) (provider.Sandbox, error) {
	for deadline := time.Now().Add(p.times.rivals); ; {
		present, err := p.find(ctx, req.Owner, req.Session)
		if err != nil {
			return provider.Sandbox{}, err
		}
		mine := info{SandboxID: made.SandboxID, StartedAt: time.Now(), EndAt: time.Now().Add(lifetime), Metadata: req.AllLabels()}
		var rivals []info
		listed := false
		for _, sandbox := range present {
			switch {
			case sandbox.SandboxID == made.SandboxID:
				mine, listed = sandbox, true
			case sandbox.Metadata[provider.LabelAttempt] == req.Attempt: // an earlier try of this very call, listed late
				if err := p.api.kill(ctx, sandbox.SandboxID); err != nil {
					return provider.Sandbox{}, err
				}
			default:
				rivals = append(rivals, sandbox)
			}
		}
		late := time.Now().After(deadline)
		if len(rivals) == 0 && (listed || late) {
			return p.describe(mine, made, req.Server, provider.OriginCreated)
		}
		if len(rivals) > 0 && (listed && older(rivals[0], mine) || late) {
			sandbox, err := p.wakeOne(ctx, rivals[:1], req.Server, lifetime)
			switch provider.CodeOf(err) {
			case "":
				return sandbox, p.api.kill(ctx, made.SandboxID)
			case provider.CodeNotFound: // it has given way meanwhile
			default:
				return provider.Sandbox{}, err
			}
		}
		if err := pause(ctx, p.times.rivals/20); err != nil {
			return provider.Sandbox{}, err
		}
	}
}

// undo removes what a failed Create made, in a context of its own, and returns the error to report.
func (p *E2B) undo(ctx context.Context, req provider.CreateRequest, id string, err error) error {
	failure := *provider.AsError(err)
	if id == "" && !mayHaveWorked(err) {
		return &failure
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), p.times.undo)
	defer cancel()
	if id == "" {
		var lookErr error
		if id, lookErr = p.findAttempt(ctx, req); lookErr != nil {
			failure.Message += fmt.Sprintf("; whether a sandbox was made could not be found out: %v", lookErr)
			return &failure
		}
	}
	if id != "" {
		if err := p.api.kill(ctx, id); err != nil {
			failure.SandboxID = id
			failure.Message += fmt.Sprintf("; and removing the sandbox again failed: %v", err)
		}
	}
	return &failure
}

// Attach finds the session's sandbox and connects to it, which wakes it and moves the end of its life to now plus the
// lifetime, never nearer. It is needed for a running sandbox too: nothing else gives the token for its ports.
func (p *E2B) Attach(ctx context.Context, req provider.AttachRequest) (provider.Sandbox, error) {
	present, err := p.find(ctx, req.Owner, req.Session)
	if err != nil {
		return provider.Sandbox{}, err
	}
	if len(present) == 0 && req.SandboxID != "" { // the listing may not show it yet
		sandbox, err := p.owned(ctx, provider.SandboxRef{Owner: req.Owner, SandboxID: req.SandboxID})
		switch {
		case err == nil && sandbox.Metadata[provider.LabelSession] != req.Session:
			return provider.Sandbox{}, provider.Errorf(provider.CodeConflict, "the sandbox %s belongs to another session", req.SandboxID)
		case err == nil:
			present = append(present, sandbox)
		case provider.CodeOf(err) != provider.CodeNotFound:
			return provider.Sandbox{}, err
		}
	}
	if len(present) > 0 {
		known := slices.IndexFunc(present, func(s info) bool { return s.SandboxID == req.SandboxID })
		if known > 0 {
			present[0], present[known] = present[known], present[0]
		}
		return p.wakeOne(ctx, present, req.Server, lifetimeOf(req.Lifetime))
	}
	if req.SandboxID != "" {
		return provider.Sandbox{}, gone(req.SandboxID)
	}
	return provider.Sandbox{}, provider.Errorf(provider.CodeNotFound, "session %q has no sandbox at E2B", req.Session)
}

func gone(id string) error {
	return &provider.Error{
		Code: provider.CodeNotFound, Reason: provider.ReasonGone, SandboxID: id, Message: fmt.Sprintf("the sandbox %s does not exist any more", id),
	}
}

// wakeOne connects to the first of the candidates that is still there. None is CodeNotFound.
func (p *E2B) wakeOne(ctx context.Context, candidates []info, server provider.Server, lifetime time.Duration) (provider.Sandbox, error) {
	for _, candidate := range candidates {
		access, woken, err := p.connect(ctx, candidate.SandboxID, lifetime)
		switch {
		case provider.CodeOf(err) == provider.CodeNotFound:
			continue
		case err != nil:
			return provider.Sandbox{}, err
		}
		origin, end := provider.OriginAttached, time.Now().Add(lifetime)
		if woken {
			origin = provider.OriginWoken
		}
		if woken || end.After(candidate.EndAt) {
			candidate.EndAt = end
		}
		return p.describe(candidate, access, server, origin)
	}
	return provider.Sandbox{}, gone(candidates[0].SandboxID)
}

// connect waits out a sandbox that is between two states: one that is being killed is not found in the end.
func (p *E2B) connect(ctx context.Context, id string, lifetime time.Duration) (access, bool, error) {
	for deadline := time.Now().Add(p.times.transition); ; {
		access, woken, err := p.api.connect(ctx, id, lifetime)
		if provider.CodeOf(err) != provider.CodeState || time.Now().After(deadline) {
			return access, woken, err
		}
		if err := pause(ctx, p.times.pause); err != nil {
			return access, false, err
		}
	}
}

// find gives the session's sandboxes, running ones first and then the oldest first.
func (p *E2B) find(ctx context.Context, owner, session string) ([]info, error) {
	found, err := p.api.list(ctx, map[string]string{labelName: provider.SandboxName(owner, session)})
	if err != nil {
		return nil, err
	}
	for _, sandbox := range found {
		if sandbox.Metadata[provider.LabelOwner] != owner || sandbox.Metadata[provider.LabelSession] != session {
			return nil, &provider.Error{
				Code: provider.CodeConflict, SandboxID: sandbox.SandboxID,
				Message: fmt.Sprintf("the sandbox %s has the name of session %q but belongs to somebody else", sandbox.SandboxID, session),
			}
		}
	}
	slices.SortFunc(found, func(a, b info) int {
		switch {
		case a.State != b.State && a.State == stateRunning:
			return -1
		case a.State != b.State && b.State == stateRunning:
			return 1
		case older(a, b):
			return -1
		}
		return 1
	})
	return found, nil
}

func older(a, b info) bool {
	if !a.StartedAt.Equal(b.StartedAt) {
		return a.StartedAt.Before(b.StartedAt)
	}
	return a.SandboxID < b.SandboxID
}

// The states E2B has a word for.
const (
	stateRunning = "running"
	statePaused  = "paused"
)

// describe remembers what opens a running sandbox and tells what is known of it.
func (p *E2B) describe(found info, to access, server provider.Server, origin provider.Origin) (provider.Sandbox, error) {
	found.State = stateRunning
	sandbox := sandboxOf(found)
	sandbox.Origin = origin
	endpoints, err := p.endpoints(to, server, portOf(server))
	if err != nil {
		return provider.Sandbox{}, err
	}
	sandbox.Endpoints = &endpoints
	p.remember(to, sandbox.Owner)
	return sandbox, nil
}

func sandboxOf(found info) provider.Sandbox {
	sandbox := provider.Sandbox{
		ID: found.SandboxID, State: provider.StateUnknown, Detail: found.State,
		Session: found.Metadata[provider.LabelSession], Owner: found.Metadata[provider.LabelOwner],
		Attempt: found.Metadata[provider.LabelAttempt], Labels: map[string]string{},
		CreatedAt: found.StartedAt, ExpiresAt: found.EndAt,
	}
	for name, value := range found.Metadata {
		if name != labelName {
			sandbox.Labels[name] = value
		}
	}
	switch found.State {
	case stateRunning:
		sandbox.State = provider.StateRunning
	case statePaused:
		// It is kept until somebody destroys it; endAt is when it was paused.
		sandbox.State, sandbox.ExpiresAt = provider.StateSuspended, time.Time{}
	}
	return sandbox
}

// StartServer starts the server unless one runs. The running one stays, whatever its command.
func (p *E2B) StartServer(ctx context.Context, req provider.StartServerRequest) (provider.Endpoints, error) {
	to, err := p.open(ctx, provider.SandboxRef{Owner: req.Owner, SandboxID: req.SandboxID})
	if err != nil {
		return provider.Endpoints{}, err
	}
	server, err := p.startServer(ctx, to, req.Server)
	if err != nil {
		return provider.Endpoints{}, p.explain(ctx, req.SandboxID, err)
	}
	if server.ended {
		tail, _ := p.logs(ctx, to, 20)
		exited := provider.ServerExited(&server.exitCode, tail)
		exited.SandboxID = req.SandboxID
		return provider.Endpoints{}, exited
	}
	return p.endpoints(to, req.Server, server.port)
}

// open gives what opens a running sandbox of the owner. It wakes nothing.
func (p *E2B) open(ctx context.Context, ref provider.SandboxRef) (access, error) {
	p.mutex.Lock()
	known, found := p.opened[ref.SandboxID]
	p.mutex.Unlock()
	if found && known.owner == ref.Owner {
		return known.access, nil
	}
	sandbox, err := p.owned(ctx, ref)
	if err != nil {
		return access{}, err
	}
	if sandbox.State != stateRunning {
		return access{}, notRunning(sandbox)
	}
	// A second more than nothing: its life ends no sooner for that.
	to, _, err := p.connect(ctx, ref.SandboxID, time.Second)
	if err == nil {
		p.remember(to, ref.Owner)
	}
	return to, err
}

func notRunning(sandbox info) error {
	return &provider.Error{
		Code: provider.CodeState, SandboxID: sandbox.SandboxID,
		Message: fmt.Sprintf("the sandbox %s is %s: attach to it first, which wakes it", sandbox.SandboxID, sandbox.State),
	}
}

// owned looks at a sandbox for its owner.
func (p *E2B) owned(ctx context.Context, ref provider.SandboxRef) (info, error) {
	if !idForm.MatchString(ref.SandboxID) {
		return info{}, provider.Errorf(provider.CodeInvalid, "%.40q is not the id of a sandbox at E2B", ref.SandboxID)
	}
	sandbox, err := p.api.get(ctx, ref.SandboxID)
	if provider.CodeOf(err) == provider.CodeNotFound {
		return info{}, gone(ref.SandboxID)
	}
	if err == nil && sandbox.Metadata[provider.LabelOwner] != ref.Owner {
		return info{}, provider.Errorf(provider.CodeConflict, "the sandbox %s belongs to another owner", ref.SandboxID)
	}
	return sandbox, err
}

// explain finds out what became of a sandbox that the proxy says does not run.
func (p *E2B) explain(ctx context.Context, id string, err error) error {
	failure := provider.AsError(err)
	failure.SandboxID = id
	if failure.Reason != reasonNoSandbox {
		return failure
	}
	p.forget(id)
	sandbox, lookErr := p.api.get(ctx, id)
	switch {
	case provider.CodeOf(lookErr) == provider.CodeNotFound:
		return gone(id)
	case lookErr != nil:
		return lookErr
	case sandbox.State == stateRunning:
		return &provider.Error{Code: provider.CodeUnreachable, Retryable: true, SandboxID: id, Message: failure.Message + ", says its proxy, but E2B says that it runs"}
	}
	return notRunning(sandbox)
}

func (p *E2B) remember(to access, owner string) {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	if len(p.opened) >= rememberedLimit {
		clear(p.opened)
	}
	p.opened[to.SandboxID] = opened{access: to, owner: owner}
}

func (p *E2B) forget(id string) {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	delete(p.opened, id)
	delete(p.silence, id)
}

// endpoints says how a server and its extra ports are reached. Nothing is asked for it: the URLs follow from the id.
func (p *E2B) endpoints(to access, server provider.Server, port int) (provider.Endpoints, error) {
	if to.TrafficAccessToken == "" && !p.config.Public && !server.AllowPublic {
		return provider.Endpoints{}, &provider.Error{
			Code: provider.CodeFailed, SandboxID: to.SandboxID,
			Message: fmt.Sprintf("the ports of the sandbox %s are open to anybody who knows its URL: it was made so, or this cluster knows no "+
				"traffic tokens. Destroy it, or accept it with public = true", to.SandboxID),
		}
	}
	endpoints := provider.Endpoints{Server: p.endpoint(to, port), Extra: map[string]provider.Endpoint{}}
	for name, extra := range server.ExtraPorts {
		endpoints.Extra[name] = p.endpoint(to, extra)
	}
	return endpoints, nil
}

func (p *E2B) endpoint(to access, port int) provider.Endpoint {
	endpoint := provider.Endpoint{URL: p.portURL(to, port), Headers: map[string]string{}}
	if p.config.SandboxURL != "" {
		endpoint.Headers["E2b-Sandbox-Id"] = to.SandboxID
		endpoint.Headers["E2b-Sandbox-Port"] = strconv.Itoa(port)
	}
	if to.TrafficAccessToken != "" {
		endpoint.Headers["e2b-traffic-access-token"] = to.TrafficAccessToken
	}
	return endpoint
}

func (p *E2B) envdURL(to access) string { return p.portURL(to, envd.Port) }

// portURL is the URL of a port. The cluster that made the sandbox knows best where it is reached.
func (p *E2B) portURL(to access, port int) string {
	if p.config.SandboxURL != "" {
		return p.config.SandboxURL
	}
	domain := p.config.Domain
	if hostForm.MatchString(to.Domain) {
		domain = to.Domain
	}
	return (&url.URL{Scheme: "https", Host: fmt.Sprintf("%d-%s.%s", port, to.SandboxID, domain)}).String()
}

func portOf(server provider.Server) int {
	if server.Port == 0 {
		return defaultPort
	}
	return server.Port
}

func lifetimeOf(asked time.Duration) time.Duration {
	if asked <= 0 {
		return defaultLifetime
	}
	return asked
}

func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return provider.AsError(ctx.Err())
	case <-timer.C:
		return nil
	}
}

// Close lets go of idle connections.
func (p *E2B) Close() error {
	p.api.http.CloseIdleConnections()
	p.envd.CloseIdleConnections()
	p.probe.CloseIdleConnections()
	return nil
}
