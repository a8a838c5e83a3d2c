package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	apiclient "github.com/daytonaio/daytona/libs/api-client-go"
	toolbox "github.com/daytonaio/daytona/libs/toolbox-api-client-go"
	"github.com/hashicorp/go-hclog"

	"github.com/berth-dev/berth/shared/cloud"
	"github.com/berth-dev/berth/shared/provider"
)

// Daytona gets sandboxes from Daytona. Everything it knows is in the cloud: a session's sandbox has a name that any
// process derives from owner and session, and the cloud keeps names unique.
type Daytona struct {
	*cloud.Provider[box]
	config Config
	log    hclog.Logger
	http   *http.Client
	api    *apiclient.APIClient
	times  times

	mutex    sync.Mutex
	replaced map[string]time.Time // by sandbox: when its token was replaced, see noteToken
	moved    map[string]bool      // by sandbox: whether it may run on another machine since it was woken
}

// times are how patient the plugin is.
type times struct {
	cloud.Times
	call     time.Duration // one call
	slowCall time.Duration // a call that the cloud holds until the sandbox runs, for 30 s at most
	token    time.Duration // how long the cloud may give out the token that a start replaced
	stale    time.Duration // how long a look-up may show a sandbox as it was, while calls go by how it is
	moved    time.Duration // how long the proxy may look for a sandbox on the machine that it was on before
}

// The API keeps the answers to look-ups for 10 s, the proxy where sandboxes are for 2 minutes.
var normalTimes = times{
	Times: cloud.DefaultTimes, call: 15 * time.Second, slowCall: 75 * time.Second, token: 1100 * time.Millisecond, stale: 12 * time.Second,
	moved: 130 * time.Second,
}

// idleHeader on a request keeps it from counting as activity: being asked for its health must not keep a forgotten
// sandbox alive.
const idleHeader = "X-Daytona-Skip-Last-Activity-Update"

func newDaytona(config Config, log hclog.Logger, t times) *Daytona {
	client := cloud.NewHTTPClient(log)
	d := &Daytona{config: config, log: log, http: client, api: newAPIClient(config, client), times: t, replaced: map[string]time.Time{}, moved: map[string]bool{}}
	d.Provider = cloud.New[box](&machines{d}, cloud.Options{
		Name: "Daytona", UniqueNames: true, Port: config.Port, ProbeHeaders: map[string]string{idleHeader: "true"}, Times: t.Times, Log: log,
	})
	return d
}

// box is what the two forms have in common in which the cloud describes a sandbox, and what only one of them has.
type box struct {
	id, name                 string
	state                    apiclient.SandboxState
	labels                   map[string]string
	created, active, updated string
	stop, remove             *float32 // minutes

	starting    bool // it is asleep, but somebody has started it: the cloud shows that late
	public      bool
	daemon      string // where it is reached
	reason      string // why it failed
	recoverable bool
}

func boxOf(s *apiclient.Sandbox) box {
	return box{
		id: s.Id, name: s.Name, state: s.GetState(), labels: s.Labels, created: s.GetCreatedAt(), active: s.GetLastActivityAt(),
		updated: s.GetUpdatedAt(), stop: s.AutoStopInterval, remove: s.AutoDeleteInterval,
		starting: s.GetDesiredState() == apiclient.SANDBOXDESIREDSTATE_STARTED, public: s.Public, daemon: s.ToolboxProxyUrl,
		reason: s.GetErrorReason(), recoverable: s.GetRecoverable(),
	}
}

func boxOfItem(s apiclient.SandboxListItem) box {
	return box{
		id: s.Id, name: s.Name, state: s.GetState(), labels: s.Labels, created: s.GetCreatedAt(), active: s.GetLastActivityAt(),
		updated: s.GetUpdatedAt(), stop: s.AutoStopInterval, remove: s.AutoDeleteInterval,
	}
}

// machines is Daytona as the kit knows clouds.
type machines struct{ *Daytona }

// Describe computes when the cloud ends a sandbox: a running one after stop minutes without activity, a stopped one after
// remove minutes, which count from the last activity, too. It ends none that is archived or has failed.
func (m *machines) Describe(b box) provider.Sandbox {
	s := provider.Sandbox{
		ID: b.id, State: stateOf(b.state), Session: b.labels[provider.LabelSession], Owner: b.labels[provider.LabelOwner],
		Attempt: b.labels[provider.LabelAttempt], Labels: b.labels, CreatedAt: timeOf(b.created), Detail: b.detail(),
	}
	since, life := timeOf(b.active), b.stop
	if since.Before(s.CreatedAt) {
		since = s.CreatedAt
	}
	switch {
	case b.state == apiclient.SANDBOXSTATE_STOPPED, b.state == apiclient.SANDBOXSTATE_STOPPING:
		life = b.remove
	case s.State == provider.StateSuspended, s.State == provider.StateFailed, s.State == provider.StateGone:
		return s
	}
	if life != nil && *life > 0 && !since.IsZero() {
		s.ExpiresAt = since.Add(time.Duration(*life) * time.Minute)
	}
	return s
}

// detail is the cloud's word for the state.
func (b box) detail() string {
	switch {
	case b.state == "":
		return "in no state"
	case b.state == apiclient.SANDBOXSTATE_UNKNOWN_DEFAULT_OPEN_API:
		return "in a state this plugin does not know"
	case b.reason != "":
		return fmt.Sprintf("%s (%s)", strings.ReplaceAll(string(b.state), "_", " "), b.reason)
	}
	return strings.ReplaceAll(string(b.state), "_", " ")
}

// stateOf reduces the cloud's states.
func stateOf(state apiclient.SandboxState) provider.State {
	switch state {
	case apiclient.SANDBOXSTATE_STARTED, apiclient.SANDBOXSTATE_SNAPSHOTTING, apiclient.SANDBOXSTATE_FORKING:
		return provider.StateRunning
	case apiclient.SANDBOXSTATE_CREATING, apiclient.SANDBOXSTATE_RESTORING, apiclient.SANDBOXSTATE_STARTING,
		apiclient.SANDBOXSTATE_PENDING_BUILD, apiclient.SANDBOXSTATE_BUILDING_SNAPSHOT, apiclient.SANDBOXSTATE_PULLING_SNAPSHOT,
		apiclient.SANDBOXSTATE_RESIZING, apiclient.SANDBOXSTATE_RESUMING, apiclient.SANDBOXSTATE_UNKNOWN:
		return provider.StateStarting
	case apiclient.SANDBOXSTATE_STOPPED, apiclient.SANDBOXSTATE_STOPPING, apiclient.SANDBOXSTATE_ARCHIVED,
		apiclient.SANDBOXSTATE_ARCHIVING, apiclient.SANDBOXSTATE_PAUSED, apiclient.SANDBOXSTATE_PAUSING:
		return provider.StateSuspended
	case apiclient.SANDBOXSTATE_DESTROYED, apiclient.SANDBOXSTATE_DESTROYING:
		return provider.StateGone
	case apiclient.SANDBOXSTATE_ERROR, apiclient.SANDBOXSTATE_BUILD_FAILED:
		return provider.StateFailed
	}
	return provider.StateUnknown
}

// timeOf is zero for what is not a time.
func timeOf(text string) time.Time {
	t, _ := time.Parse(time.RFC3339, text)
	return t
}

// Look finds a sandbox by its id; the cloud takes a name as well.
func (m *machines) Look(ctx context.Context, idOrName string) (box, error) {
	s, err := patiently(ctx, m.Daytona, "looking for the sandbox", func(ctx context.Context) (*apiclient.Sandbox, *http.Response, error) {
		return m.api.SandboxAPI.GetSandbox(ctx, idOrName).Execute()
	})
	if err != nil {
		return box{}, err
	}
	return boxOf(s), nil
}

// Find finds the session's sandbox by its name. The API drops a kept answer when the sandbox changes, but not at once: a
// look-up may be 10 s behind, and a listing a minute.
func (m *machines) Find(ctx context.Context, owner, session string) ([]box, error) {
	b, err := m.Look(ctx, provider.SandboxName(owner, session))
	switch {
	case provider.CodeOf(err) == provider.CodeNotFound:
		return nil, nil
	case err != nil:
		return nil, err
	}
	return []box{b}, nil
}

// pageSize is the most that the cloud lists at once.
const pageSize = 200

// List asks the cloud's search index, which is a few seconds behind: a sandbox just destroyed may still be there.
func (m *machines) List(ctx context.Context, req provider.ListRequest) ([]box, error) {
	labels := map[string]string{}
	if !req.AllOwners {
		labels[provider.LabelOwner] = req.Owner
	}
	filter, err := json.Marshal(labels)
	if err != nil {
		return nil, err
	}
	var boxes []box
	cursors := map[string]bool{}
	for cursor := ""; ; {
		page, err := patiently(ctx, m.Daytona, "listing the sandboxes", func(ctx context.Context) (*apiclient.ListSandboxesResponse, *http.Response, error) {
			// By time of creation, which never changes, so that no sandbox moves from page to page.
			call := m.api.SandboxAPI.ListSandboxes(ctx).Labels(string(filter)).Limit(pageSize).
				Sort(apiclient.SANDBOXLISTSORTFIELD_CREATED_AT).Order(apiclient.SANDBOXLISTSORTDIRECTION_ASC)
			if cursor != "" {
				call = call.Cursor(cursor)
			}
			return call.Execute()
		})
		if err != nil {
			return nil, err
		}
		for _, item := range page.Items {
			boxes = append(boxes, boxOfItem(item))
		}
		next := page.NextCursor.Get()
		if next == nil || *next == "" {
			return boxes, nil
		}
		if cursors[*next] {
			return nil, provider.Errorf(provider.CodeFailed, "listing the sandboxes failed: the pages go round in circles")
		}
		cursor = *next
		cursors[cursor] = true
	}
}

// Make asks for a sandbox. The answer shows it before it runs.
func (m *machines) Make(ctx context.Context, name string, req provider.CreateRequest) (box, error) {
	s, err := ask(ctx, m.Daytona, m.times.slowCall, "creating the sandbox", func(ctx context.Context) (*apiclient.Sandbox, *http.Response, error) {
		return m.api.SandboxAPI.CreateSandbox(ctx).CreateSandbox(*m.body(name, req)).Execute()
	})
	if err != nil {
		e := *provider.AsError(err)
		if cloud.StatusOf(err) == http.StatusConflict {
			e.Code = provider.CodeConflict
		}
		return box{}, &e
	}
	m.noteToken(s.Id, time.Time{})
	return boxOf(s), nil
}

func (m *machines) body(name string, req provider.CreateRequest) *apiclient.CreateSandbox {
	body := apiclient.NewCreateSandbox()
	body.SetName(name)
	body.SetLabels(req.AllLabels())
	body.SetPublic(m.config.Public)
	body.SetAutoStopInterval(minutes(req.Lifetime))
	body.SetAutoDeleteInterval(-1)
	if m.config.DeleteAfter > 0 { // 0 would delete it the moment it stops, instead of suspending it
		body.SetAutoDeleteInterval(minutes(m.config.DeleteAfter))
	}
	switch {
	case m.config.ArchiveAfter > 0:
		body.SetAutoArchiveInterval(minutes(m.config.ArchiveAfter))
	case m.config.DeleteAfter > 0: // by itself the cloud archives after 7 days, and deletes nothing then
		body.SetAutoArchiveInterval(0) // as late as it can
	}
	if m.config.Target != "" {
		body.SetTarget(m.config.Target)
	}
	if m.config.Snapshot != "" {
		body.SetSnapshot(m.config.Snapshot)
	}
	if m.config.Image != "" {
		body.SetBuildInfo(*apiclient.NewCreateBuildInfo("FROM " + m.config.Image + "\n"))
	}
	for _, size := range []struct {
		value int
		set   func(int32)
	}{{m.config.CPU, body.SetCpu}, {m.config.Memory, body.SetMemory}, {m.config.Disk, body.SetDisk}} {
		if size.value > 0 {
			size.set(int32(size.value))
		}
	}
	if m.config.BlockNetwork {
		body.SetNetworkBlockAll(true)
	}
	if len(m.config.AllowNetworks) > 0 {
		body.SetNetworkAllowList(strings.Join(m.config.AllowNetworks, ","))
	}
	return body
}

// Found gives a sandbox that was woken the lifetime asked for. It has one from its creation, so that this fails is no
// reason to refuse it. One that may have moved to another machine is waited for.
func (m *machines) Found(ctx context.Context, b box, woken bool, lifetime time.Duration) (box, bool, error) {
	if woken {
		if err := m.setLifetime(ctx, b, lifetime); err != nil {
			m.log.Warn("the lifetime of a woken sandbox stays as it was", "sandbox", b.id, "error", err)
		}
	}
	m.mutex.Lock()
	moved := m.moved[b.id]
	delete(m.moved, b.id)
	m.mutex.Unlock()
	if moved {
		return b, woken, m.awaitDaemon(ctx, b)
	}
	return b, woken, nil
}

// awaitDaemon waits for as long as the proxy finds no such sandbox, because it looks on the machine that it was on before.
func (m *machines) awaitDaemon(ctx context.Context, b box) error {
	daemon, err := m.toolbox(b)
	if err != nil {
		return err
	}
	daemon.GetConfig().AddDefaultHeader(idleHeader, "true")
	wait := m.times.Poll
	for began := time.Now(); time.Since(began) < m.times.moved; wait = min(2*wait, m.times.PollMost) {
		_, err := ask(ctx, m.Daytona, m.times.call, "reaching the sandbox", func(ctx context.Context) (*map[string]string, *http.Response, error) {
			version, response, err := daemon.InfoAPI.GetVersion(ctx).Execute()
			return &version, response, err
		})
		if cloud.StatusOf(err) != http.StatusNotFound {
			break // whatever it is, it is not that
		}
		if !cloud.Pause(ctx, wait) {
			return cloud.Ended(ctx, "reaching the sandbox on its new machine")
		}
	}
	return nil
}

// The headers of a private sandbox's URLs. The second keeps the proxy from answering 200 with a page that warns people.
const (
	tokenHeader = "X-Daytona-Preview-Token"
	plainHeader = "X-Daytona-Skip-Preview-Warning"
)

// Endpoints asks where ports are reached. One token opens all ports of a private sandbox. It changes whenever the sandbox is
// started, and for a second after that the cloud may still give out the one before: while the server boots, that is waited
// out. A public sandbox needs none, and gets no header that would look as if something protected it.
func (m *machines) Endpoints(ctx context.Context, b box, ports []int) (map[int]provider.Endpoint, error) {
	if !b.public {
		m.awaitToken(ctx, b)
	}
	endpoints := map[int]provider.Endpoint{}
	for _, port := range ports {
		preview, err := m.preview(ctx, b.id, port)
		if err != nil {
			return nil, err
		}
		address, err := cloud.PortURL(preview.Url)
		switch {
		case err != nil:
			return nil, err
		case b.public:
			endpoints[port] = provider.Endpoint{URL: address}
			continue
		case preview.Token == "":
			return nil, provider.Errorf(provider.CodeFailed, "the cloud gave no token for the private URL of port %d", port)
		}
		endpoints[port] = provider.Endpoint{URL: address, Headers: map[string]string{tokenHeader: preview.Token, plainHeader: "true"}}
	}
	return endpoints, nil
}

func (m *machines) preview(ctx context.Context, id string, port int) (*apiclient.PortPreviewUrl, error) {
	return patiently(ctx, m.Daytona, fmt.Sprintf("asking for the URL of port %d", port),
		func(ctx context.Context) (*apiclient.PortPreviewUrl, *http.Response, error) {
			return m.api.SandboxAPI.GetPortPreviewUrl(ctx, id, float32(port)).Execute()
		})
}

// awaitToken waits until the token that a start replaced is no longer given out. What this process does not know tells the
// cloud: another one may have started the sandbox a moment ago.
func (d *Daytona) awaitToken(ctx context.Context, b box) {
	d.mutex.Lock()
	replaced, known := d.replaced[b.id]
	delete(d.replaced, b.id)
	d.mutex.Unlock()
	if !known {
		replaced = timeOf(b.updated)
	}
	if age := time.Since(replaced).Abs(); age < d.times.token {
		cloud.Pause(ctx, d.times.token-age)
	}
}

// noteToken remembers when the token of a sandbox was replaced by this process; zero: never, the sandbox is new.
func (d *Daytona) noteToken(id string, replaced time.Time) { note(d, d.replaced, id, replaced) }

// note remembers something of a sandbox, of a bounded number of them.
func note[V any](d *Daytona, about map[string]V, id string, value V) {
	const most = 10_000
	d.mutex.Lock()
	defer d.mutex.Unlock()
	if len(about) >= most {
		clear(about)
	}
	about[id] = value
}

// Denied finds out whether the token of a URL was replaced. The proxy redirects to its login page, too, while it cannot ask
// the API whether a token is right, and for some seconds after it refused a token that has become right since.
func (m *machines) Denied(ctx context.Context, b box, endpoint provider.Endpoint) (wrong bool, why string) {
	preview, err := m.preview(ctx, b.id, m.config.Port) // any port will do
	token := endpoint.Headers[tokenHeader]
	switch {
	case err != nil:
		return false, err.Error()
	case token != "" && preview.Token != token:
		return true, "the sandbox was started anew, which replaced its token: connect again"
	case m.refusedByProxy(ctx, endpoint):
		return false, "the token is right, so the proxy could not ask the API about it"
	}
	return true, "" // by the server itself
}

// refusedByProxy reports whether a refusal has the form of the proxy's, which are none of the server's.
func (m *machines) refusedByProxy(ctx context.Context, endpoint provider.Endpoint) bool {
	ctx, cancel := context.WithTimeout(ctx, m.times.call)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, endpoint.URL+"/", nil)
	if err != nil {
		return false
	}
	for name, value := range endpoint.Headers {
		request.Header.Set(name, value)
	}
	request.Header.Set(idleHeader, "true")
	response, err := m.http.Do(request)
	if err != nil {
		return true // nobody refuses any more
	}
	defer response.Body.Close()
	var said struct {
		Code string `json:"code"`
	}
	_ = json.NewDecoder(response.Body).Decode(&said)
	return response.StatusCode == http.StatusTemporaryRedirect || response.StatusCode == http.StatusUnauthorized && said.Code == "UNAUTHORIZED"
}

// Run runs a script through the sandbox's daemon, not in one of the daemon's sessions: a session is a shell that a server's
// "exit" or "exec" replaces for good, it starts a second copy when the first request's answer is lost, and its record of a
// process is gone when the shell is. The environment travels in the daemon's own field for it.
func (m *machines) Run(ctx context.Context, b box, script cloud.Script) (string, error) {
	daemon, err := m.toolbox(b)
	if err != nil {
		return "", err
	}
	if !script.Launches { // a look is no activity
		daemon.GetConfig().AddDefaultHeader(idleHeader, "true")
	}
	request := toolbox.NewExecuteRequest(script.Line())
	request.SetTimeout(int32(m.times.Script / time.Second))
	if len(script.Env) > 0 {
		request.SetEnvs(script.Env)
	}
	response, err := ask(ctx, m.Daytona, m.times.call, "running a script in the sandbox", func(ctx context.Context) (*toolbox.ExecuteResponse, *http.Response, error) {
		return daemon.ProcessAPI.ExecuteCommand(ctx).Request(*request).Execute()
	})
	if err != nil {
		return "", m.readRefusedRun(ctx, b, err)
	}
	return response.Result, nil
}

// readRefusedRun reads what the proxy makes of a call that it cannot pass on. The sandbox has no address yet or is being moved,
// which passes, or it is stopped; or the proxy could not ask the API whether our key is right, or did a moment too early.
func (m *machines) readRefusedRun(ctx context.Context, b box, err error) error {
	e := *provider.AsError(err)
	switch cloud.StatusOf(err) {
	case http.StatusUnauthorized:
		if _, err := m.Look(ctx, b.id); err != nil {
			return err // the API says what is wrong
		}
		e.Retryable = true
	case http.StatusBadRequest, http.StatusNotFound:
		e.Code, e.Reason, e.Retryable = provider.CodeUnreachable, "", true
	}
	return &e
}

// deletionTime is how long Remove waits for the end of a deletion that the cloud has accepted, and so will finish.
const deletionTime = 20 * time.Second

// Remove deletes a sandbox and waits until it is gone. The cloud refuses while the sandbox changes, which includes its
// creation.
func (m *machines) Remove(ctx context.Context, b box) error {
	var accepted time.Time
	tries := 0
	for wait := m.times.Poll; ; wait = min(wait*13/10, m.times.PollMost) {
		if accepted.IsZero() {
			_, err := ask(ctx, m.Daytona, m.times.call, "deleting the sandbox", func(ctx context.Context) (*apiclient.Sandbox, *http.Response, error) {
				return m.api.SandboxAPI.DeleteSandbox(ctx, b.id).Execute()
			})
			e := provider.AsError(err)
			switch {
			case err == nil:
				accepted = time.Now()
			case e.Code == provider.CodeNotFound:
				return nil
			case cloud.StatusOf(err) == http.StatusConflict: // as long as it takes
			case !e.Retryable || e.RetryAfter > m.times.Retry.Longest || tries >= m.times.Retry.Tries || ctx.Err() != nil:
				return err
			default:
				tries++
				wait = max(wait, e.RetryAfter)
			}
		} else {
			now, err := m.Look(ctx, b.id)
			unknown := err != nil && ctx.Err() == nil // or gone
			if unknown || err == nil && now.state == apiclient.SANDBOXSTATE_DESTROYED || time.Since(accepted) > deletionTime {
				return nil
			}
		}
		if !cloud.Pause(ctx, wait) {
			return cloud.Ended(ctx, "deleting the sandbox")
		}
	}
}
