package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"fmt"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/berth-dev/berth/shared/cloud"
	"github.com/berth-dev/berth/shared/provider"
)

// Runloop makes sandboxes of devboxes. Everything it must know again later is in their metadata, so that any process with the
// same account finds the same sandboxes.
type Runloop struct {
	*cloud.Provider[devbox] // the contract, all of it but what housekeeping.go adds
	boxes                   *devboxes
}

// standardTimes look at servers seldom: a look is a call of the control API here.
var standardTimes = cloud.Times{FirstLook: time.Second, LookServer: 5 * time.Second}

func newProvider(config Config, log hclog.Logger, times cloud.Times) *Runloop {
	boxes := &devboxes{api: newAPI(config.BaseURL, config.APIKey, log), config: config, log: log, hold: 10 * time.Second}
	// Runloop does not keep names unique. A tunnel does not reach a server that listens on loopback.
	options := cloud.Options{Name: "Runloop", Env: map[string]string{"HOST": "0.0.0.0"}, Times: times, Log: log}
	return &Runloop{cloud.New(boxes, options), boxes}
}

// Close is called before the plugin exits.
func (r *Runloop) Close() error {
	r.boxes.api.Client.CloseIdleConnections()
	return r.Provider.Close()
}

// devboxes is Runloop as the kit knows clouds.
type devboxes struct {
	api    *api
	config Config
	log    hclog.Logger
	hold   time.Duration // how long the API holds a question for a status; at most 30 s
}

// Describe maps Runloop's words to the contract's. A devbox that failed has ended for good.
func (d *devboxes) Describe(it devbox) provider.Sandbox {
	state := provider.StateUnknown
	switch it.Status {
	case scheduled, queued, provisioning, initializing, resuming:
		state = provider.StateStarting
	case running:
		state = provider.StateRunning
	case suspending, suspended:
		state = provider.StateSuspended
	case failure, shutdown:
		state = provider.StateGone
	}
	labels := maps.Clone(it.Metadata)
	delete(labels, labelRenewed)
	return provider.Sandbox{
		ID: it.ID, State: state, Detail: it.detail(), Labels: labels, CreatedAt: time.UnixMilli(it.CreateTimeMS), ExpiresAt: it.expires(),
		Session: labels[provider.LabelSession], Owner: labels[provider.LabelOwner], Attempt: labels[provider.LabelAttempt],
	}
}

// Look reads a devbox.
func (d *devboxes) Look(ctx context.Context, id string) (devbox, error) { return d.api.get(ctx, id) }

// Find looks through all devboxes: the API finds none by name or metadata.
func (d *devboxes) Find(ctx context.Context, owner, session string) ([]devbox, error) {
	return d.List(ctx, provider.ListRequest{Owner: owner, Session: session})
}

// List asks for every status of a devbox that has not ended, because the API filters by one status only and a listing without
// one is full of devboxes that ended long ago. Those that devboxes come from are asked for before those they go to, and
// besides the first page of all, for statuses that are not known here and devboxes that changed theirs in between.
func (d *devboxes) List(ctx context.Context, req provider.ListRequest) ([]devbox, error) {
	found := map[string]devbox{}
	for _, statuses := range [][]string{
		{queued, provisioning, initializing, resuming, suspending}, {running, suspended, ""},
	} {
		pages := make([][]devbox, len(statuses))
		errs := make([]error, len(statuses))
		var queries sync.WaitGroup
		for i, status := range statuses {
			queries.Go(func() { pages[i], errs[i] = d.api.list(ctx, status) })
		}
		queries.Wait()
		for i := range statuses {
			if errs[i] != nil {
				return nil, errs[i]
			}
			for _, box := range pages[i] {
				found[box.ID] = box
			}
		}
	}
	var boxes []devbox
	for _, box := range found {
		session := box.Metadata[provider.LabelSession]
		if session != "" && req.Matches(box.Metadata[provider.LabelOwner], session) && !box.ended() {
			boxes = append(boxes, box)
		}
	}
	return boxes, nil
}

// longestLife is the API's limit of keep_alive_time_seconds.
const longestLife = 48 * time.Hour

// Make creates a devbox with its tunnel.
func (d *devboxes) Make(ctx context.Context, name string, req provider.CreateRequest) (devbox, error) {
	user, _ := userOf(d.config.User) // it was checked
	body := creation{
		Name: name, Metadata: req.AllLabels(),
		Blueprint: d.config.Blueprint, BlueprintID: d.config.BlueprintID, SnapshotID: d.config.SnapshotID,
		Secrets: d.config.Secrets, Tunnel: d.tunnelRequest(),
		LaunchParameters: launchParameters{
			LaunchCommands: d.config.LaunchCommands, Size: d.config.Size, Architecture: d.config.Architecture,
			User: user, NetworkPolicy: d.config.NetworkPolicy,
		},
	}
	if d.config.IdleTimeout > 0 { // the API ignores or refuses the lifetime beside it
		body.LaunchParameters.Lifecycle = &lifecycle{AfterIdle: &afterIdle{wholeSeconds(d.config.IdleTimeout), d.config.OnIdle}}
	} else { // never left out: the API would end the devbox after an hour, whatever was asked for
		body.LaunchParameters.KeepAlive = wholeSeconds(min(req.Lifetime, longestLife))
	}
	return d.api.create(ctx, body, req.Attempt)
}

func wholeSeconds(d time.Duration) int { return int((d + time.Second - 1) / time.Second) }

// Await asks for the statuses in which nothing goes on by itself.
func (d *devboxes) Await(ctx context.Context, it devbox) (devbox, error) {
	now, err := d.until(ctx, it.ID, running, suspended)
	now.woken = it.woken || it.waking()
	return now, err
}

// until returns a devbox once it has one of the statuses or has ended, or as it is after a while. To wait for running alone
// would hang: a devbox can be suspended or end on its way.
func (d *devboxes) until(ctx context.Context, id string, statuses ...string) (devbox, error) {
	wanted := slices.Concat(statuses, []string{failure, shutdown})
	now, err := d.api.wait(ctx, id, wanted, d.hold)
	believed := now.ID == id && slices.Contains(wanted, now.Status)
	switch {
	case err == nil && believed:
		return now, nil
	case err != nil && cloud.StatusOf(err) != http.StatusRequestTimeout:
		return now, err
	}
	cloud.Pause(ctx, d.hold/50) // should the API answer such questions at once
	return d.api.get(ctx, id)   // a status that nobody asked for shows only to those who look
}

// Wake resumes a suspended devbox and returns it once it has left that status, as which it still reads for a moment. One
// that is found suspended later has fallen back. The life begins anew with its old length.
func (d *devboxes) Wake(ctx context.Context, it devbox, _ time.Duration) (devbox, error) {
	if it.Status == suspending {
		now, err := d.until(ctx, it.ID, suspended, running)
		if err != nil || now.Status != suspended {
			return now, err
		}
	}
	if err := d.api.resume(ctx, it.ID); err != nil && cloud.StatusOf(err) != http.StatusBadRequest {
		return it, err
	}
	return d.until(ctx, it.ID, resuming, provisioning, initializing, running)
}

// Found starts the clock of a running devbox's life anew, because being found is being used. The devbox is as good without
// that, so failing is no error.
func (d *devboxes) Found(ctx context.Context, it devbox, woken bool, _ time.Duration) (devbox, bool, error) {
	if woken || it.woken {
		return it, true, nil
	}
	within, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	it, err := d.api.keepAlive(within, it, cloud.Never)
	if err != nil {
		d.log.Debug("the devbox's life was not renewed", "devbox", it.ID, "error", err)
	}
	return it, false, nil
}

func (d *devboxes) tunnelRequest() tunnelRequest {
	return tunnelRequest{AuthMode: d.config.Tunnel, KeepAlive: d.config.KeepAlive}
}

// tunnelKey is what may become part of a host's name.
var tunnelKey = regexp.MustCompile(`^[A-Za-z0-9_-]{1,128}$`)

// tokenHeader carries a tunnel's token.
const tokenHeader = "X-Runloop-Tunnel-Authorization"

// Endpoints sees to it that the devbox has its tunnel, which serves all ports. The tunnel's token opens them; the API key is
// never sent there.
func (d *devboxes) Endpoints(ctx context.Context, it devbox, ports []int) (map[int]provider.Endpoint, error) {
	t, err := d.tunnelOf(ctx, it)
	switch {
	case err != nil:
		return nil, err
	case !tunnelKey.MatchString(t.Key), t.AuthMode != "open" && (t.AuthToken == "" || strings.ContainsAny(t.AuthToken, "\r\n")):
		return nil, provider.Errorf(provider.CodeUnreachable, "the tunnel of the devbox %s has no usable key or token", it.ID)
	}
	endpoints := map[int]provider.Endpoint{}
	for _, port := range ports {
		e := provider.Endpoint{URL: tunnelURL(d.config.TunnelURL, port, t.Key), Headers: map[string]string{}}
		if t.AuthToken != "" {
			// Not Authorization: that one belongs to the server behind the tunnel.
			e.Headers[tokenHeader] = "Bearer " + t.AuthToken
		}
		endpoints[port] = e
	}
	return endpoints, nil
}

// tunnelOf returns the devbox's tunnel. It enables one where there is none, and replaces one that is open to anybody unless
// the configuration accepts that.
func (d *devboxes) tunnelOf(ctx context.Context, it devbox) (*tunnel, error) {
	right := func(t *tunnel) bool { return t != nil && (t.AuthMode != "open" || d.config.Tunnel == "open") }
	if right(it.Tunnel) {
		return it.Tunnel, nil
	}
	now, err := d.api.get(ctx, it.ID) // what is remembered may be out of date
	if err != nil || right(now.Tunnel) {
		return now.Tunnel, err
	}
	if now.Tunnel != nil {
		d.log.Warn("the devbox's ports are open to anybody: its tunnel is replaced", "devbox", it.ID)
		if err := d.api.removeTunnel(ctx, it.ID); err != nil && provider.CodeOf(err) != provider.CodeNotFound {
			return nil, err
		}
	}
	refused := d.api.enableTunnel(ctx, it.ID, d.tunnelRequest())
	if refused != nil && cloud.StatusOf(refused) != http.StatusBadRequest { // somebody else may have been first, or its own first try
		return nil, refused
	}
	now, err = d.api.get(ctx, it.ID)
	if err == nil && !right(now.Tunnel) {
		err = cmp.Or(refused, error(provider.Errorf(provider.CodeState, "the devbox %s has no tunnel that can be used", it.ID)))
	}
	return now.Tunnel, err
}

// Run runs a script as a command that ends soon. That goes for the start script too: it leaves the server in a session of its
// own, which goes on. (execute_async would stay with the server, and show nothing of it until it ends.) The environment, which
// holds secrets, is written to a file that the command line reads and removes first of all: a command line is seen by every
// process of the devbox and kept by Runloop.
func (d *devboxes) Run(ctx context.Context, it devbox, script cloud.Script) (string, error) {
	line, file := script.Line(), ""
	if len(script.Env) > 0 {
		var err error
		if file, err = d.deliver(ctx, it.ID, script.Env); err != nil {
			d.takeBack(ctx, it.ID, file)
			return "", err
		}
		// It is gone before anything else is run, and nothing is run without it.
		line = fmt.Sprintf(`berth_env=$(cat %[1]s) || exit 1; rm -f %[1]s; eval "$berth_env"; unset berth_env; exec %[2]s`, cloud.Quote(file), line)
	}
	result, err := d.api.execute(ctx, it.ID, line)
	if err != nil {
		d.takeBack(ctx, it.ID, file)
	}
	return result.Stdout + "\n" + result.Stderr, err // a shell that cannot run the script says there why
}

// takeBack removes a file that may not have been read. Should that fail, a later start does it.
func (d *devboxes) takeBack(ctx context.Context, id, file string) {
	if file == "" {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	if _, err := d.api.execute(ctx, id, "rm -f "+cloud.Quote(file)); err != nil {
		d.log.Debug("a file with the server's environment may be left in the devbox", "devbox", id, "error", err)
	}
}

// privateDirectory makes a directory that nobody else can enter, prints its name, and removes what a start left there that
// failed halfway.
const privateDirectory = `umask 077
for dir in "$HOME/.berth" "${TMPDIR:-/tmp}/.berth"; do
  mkdir -p "$dir" && chmod 700 "$dir" && [ -w "$dir" ] || continue
  find "$dir" -name 'env-*' -mmin +1 -exec rm -f {} + 2>/dev/null
  echo "$dir"
  exit
done
exit 1`

// deliver writes an environment to a file for a shell to read, and returns its name, also when it may not be whole.
func (d *devboxes) deliver(ctx context.Context, id string, env map[string]string) (string, error) {
	made, err := d.api.execute(ctx, id, privateDirectory)
	directory := strings.TrimSpace(made.Stdout)
	switch {
	case err != nil:
		return "", err
	case made.ExitStatus == nil || *made.ExitStatus != 0 || !strings.HasPrefix(directory, "/"):
		return "", provider.Errorf(provider.CodeFailed, "the devbox %s has no place for a private file: %.200s", id, strings.TrimSpace(made.Stderr))
	}
	file := directory + "/env-" + rand.Text()
	var contents strings.Builder
	for _, name := range slices.Sorted(maps.Keys(env)) {
		fmt.Fprintf(&contents, "export %s=%s\n", name, cloud.Quote(env[name]))
	}
	return file, d.api.writeFile(ctx, id, file, contents.String())
}

// Remove shuts a devbox down and waits for its end.
func (d *devboxes) Remove(ctx context.Context, it devbox) error {
	now, err := d.api.shutdown(ctx, it.ID)
	if cloud.StatusOf(err) == http.StatusBadRequest { // it may have ended
		if seen, lookErr := d.api.get(ctx, it.ID); lookErr == nil && seen.ended() {
			return nil
		}
	}
	if cloud.StatusOf(err) == http.StatusConflict { // forcing would spoil the snapshot that somebody wanted
		return &provider.Error{
			Code: provider.CodeState, Retryable: true, SandboxID: it.ID, Cause: err,
			Message: fmt.Sprintf("the devbox %s cannot be shut down while a snapshot of its disk is being made: try again when that is done", it.ID),
		}
	}
	for err == nil && !now.ended() {
		now, err = d.until(ctx, it.ID)
	}
	if provider.CodeOf(err) == provider.CodeNotFound {
		return nil
	}
	return err
}
