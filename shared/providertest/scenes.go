package providertest

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/berth-dev/berth/shared/provider"
)

// A scene is a preparation that several checks share. It plays once, for the first check that needs it. A failure in it
// fails the one check that is about it; the others are skipped.

// running is a sandbox whose server is alive. Checks must leave it so.
type running struct {
	sandbox   provider.Sandbox
	attempt   string
	before    time.Time // when Create was called
	creation  time.Duration
	createErr error

	endpoints provider.Endpoints
	start     time.Duration
	startErr  error
	opened    time.Time // when the endpoints were given out

	aliveErr error
	early    string // a verdict of a Ping while the server was on its way
	openErr  error  // of a request to the server, once it is alive
}

// ready returns an error if the scene cannot be used.
func (r running) ready() error {
	switch {
	case r.createErr != nil:
		return needed(r.createErr, "Create")
	case r.startErr != nil:
		return needed(r.startErr, "StartServer")
	}
	return nil
}

// ended is a sandbox that had a server and was destroyed.
type ended struct {
	sandbox    provider.Sandbox
	endpoints  provider.Endpoints
	err        error // of a preparation
	destroyErr error
	againErr   error // of destroying it again
}

// nap is a sandbox that was suspended and woken.
type nap struct {
	sandbox    provider.Sandbox
	err        error // of a preparation
	suspendErr error
	listed     provider.Sandbox // while it was suspended, where the plugin lists
	listErr    error
	againErr   error // of suspending it again
	ping       provider.PingResult
	pingErr    error
	pinged     provider.Sandbox // as listed after the pings
	found      provider.Sandbox // by an Attach after the pings
	foundErr   error
	startErr   error // of starting a server while it was suspended
	woken      provider.Sandbox
	wakeErr    error
	cancelled  error // of a call that woke it and was cancelled: what is wrong afterwards
}

// deaths is a sandbox whose servers die.
type deaths struct {
	sandbox   provider.Sandbox
	err       error // of a preparation
	atOnce    death // of a server that dies at once
	noCommand death // of one whose command does not exist
	startErr  error // of starting one that dies later
	ping      provider.PingResult
	pingErr   error
}

// death is what a plugin reports of a server that dies at once: by StartServer's error, or else by Ping.
type death struct {
	startErr error
	ping     provider.PingResult // the last one
	pingErr  error
}

// exited reports whether the plugin noticed that the server's process ended, and returns the exit code and the last
// lines that it knows.
func (d death) exited() (exitCode *int, logTail []string, ok bool) {
	if d.startErr != nil {
		e := provider.AsError(d.startErr)
		return e.ExitCode, e.LogTail, e.Reason == provider.ReasonServerExited
	}
	return d.ping.ExitCode, d.ping.LogTail, d.pingErr == nil && d.ping.Status == provider.PingExited
}

// String describes what was reported.
func (d death) String() string {
	switch {
	case d.startErr != nil:
		return "StartServer answers " + describeError(d.startErr)
	case d.pingErr != nil:
		return "StartServer succeeds, and Ping answers " + describeError(d.pingErr)
	}
	return fmt.Sprintf("StartServer succeeds, and Ping answers %s: %s", d.ping.Status, d.ping.Reason)
}

// talker is a sandbox whose server only writes to its log.
type talker struct {
	err       error // of a preparation
	sandbox   provider.Sandbox
	endpoints provider.Endpoints
	startErr  error
	// The whole log, and the last three lines of it.
	log, tail       []string
	logErr, tailErr error
}

// crowd is many calls at once.
type crowd struct {
	err       error // of a preparation
	failures  []string
	sandboxes []provider.Sandbox
	exhausted bool // the account allows no more sandboxes
}

func (s *suite) prepareScenes(ctx context.Context) {
	s.running = sync.OnceValue(func() running { return s.playRunning(ctx) })
	s.ended = sync.OnceValue(func() ended { return s.playEnded(ctx) })
	s.nap = sync.OnceValue(func() nap { return s.playNap(ctx) })
	s.deaths = sync.OnceValue(func() deaths { return s.playDeaths(ctx) })
	s.talker = sync.OnceValue(func() talker { return s.playTalker(ctx) })
	s.crowd = sync.OnceValue(func() crowd { return s.playCrowd(ctx) })
	s.neighbour = sync.OnceValues(func() (neighbour, error) { return s.playNeighbour(ctx) })
	s.outages = sync.OnceValues(func() ([]outage, error) { return s.playOutages(ctx) })
	s.other = sync.OnceValues(func() (*instance, error) {
		i, err := s.open(ctx, nil)
		return i, needed(err, "starting another process of the plugin")
	})
	s.stranded = sync.OnceValues(func() (provider.Sandbox, error) {
		r := s.running()
		if r.createErr != nil {
			return provider.Sandbox{}, needed(r.createErr, "Create")
		}
		sandbox, err := s.create(ctx, s.shared.client, s.createRequest(s.stranger, r.sandbox.Session, s.server()))
		return sandbox, needed(err, "Create for another owner")
	})
}

func (s *suite) playRunning(ctx context.Context) (r running) {
	request := s.createRequest(s.owner, s.session(), s.server())
	r.before, r.attempt = time.Now(), request.Attempt
	r.sandbox, r.createErr = s.create(ctx, s.shared.client, request)
	r.creation = time.Since(r.before)
	if r.createErr != nil {
		return r
	}
	began := time.Now()
	r.endpoints, r.startErr = s.shared.client.StartServer(ctx, s.startRequest(r.sandbox, s.server()))
	r.start = time.Since(began)
	if r.startErr != nil {
		return r
	}
	s.keepHeaders(r.sandbox, r.endpoints)
	r.opened = time.Now()
	if r.early, r.aliveErr = s.watchAlive(ctx, r.sandbox, r.endpoints); r.aliveErr == nil {
		r.openErr = s.opens(ctx, r.endpoints.Server)
	}
	return r
}

// keepHeaders adds the values of the endpoints' headers to the secrets. A sandbox's id is not secret.
func (s *suite) keepHeaders(sandbox provider.Sandbox, endpoints provider.Endpoints) {
	for name, value := range endpoints.Server.Headers {
		if !strings.Contains(sandbox.ID, value) && !strings.Contains(value, sandbox.ID) {
			s.keepSecret(value, "the header "+name+" of an endpoint")
		}
	}
}

// awaitAlive pings until the server is alive.
func (s *suite) awaitAlive(ctx context.Context, sandbox provider.Sandbox, endpoints provider.Endpoints) error {
	_, err := s.watchAlive(ctx, sandbox, endpoints)
	return err
}

// watchAlive is awaitAlive that also tells of a verdict on the way, at which a host would have given up.
func (s *suite) watchAlive(ctx context.Context, sandbox provider.Sandbox, endpoints provider.Endpoints) (early string, _ error) {
	var last provider.PingResult
	alive, err := eventually(ctx, s.pace.verdict, func() (bool, error) {
		var err error
		last, err = s.shared.client.Ping(ctx, s.pingRequest(sandbox, endpoints.Server))
		switch last.Status {
		case provider.PingExited, provider.PingStopped, provider.PingGone:
			early = fmt.Sprintf("%s: %s", last.Status, last.Reason)
		}
		return last.Status == provider.PingAlive, err
	})
	switch {
	case alive:
		return early, nil
	case err != nil:
		return early, fmt.Errorf("it answers %s", describeError(err))
	}
	return early, fmt.Errorf("after %s Ping still answers %s: %s", s.pace.verdict, last.Status, last.Reason)
}

func (s *suite) playEnded(ctx context.Context) (e ended) {
	if e.sandbox, e.err = s.newSandbox(ctx, s.server()); e.err != nil {
		return e
	}
	if e.endpoints, e.err = s.shared.client.StartServer(ctx, s.startRequest(e.sandbox, s.server())); e.err != nil {
		e.err = needed(e.err, "StartServer")
		return e
	}
	e.destroyErr = s.shared.client.Destroy(ctx, ref(s.owner, e.sandbox))
	if e.destroyErr == nil {
		e.againErr = s.shared.client.Destroy(ctx, ref(s.owner, e.sandbox))
	}
	return e
}

func (s *suite) playNap(ctx context.Context) (n nap) {
	client := s.shared.client
	if n.sandbox, n.err = s.newSandbox(ctx, s.server()); n.err != nil {
		return n
	}
	endpoints, err := client.StartServer(ctx, s.startRequest(n.sandbox, s.server()))
	if err != nil {
		n.err = needed(err, "StartServer")
		return n
	}
	if n.suspendErr = client.Suspend(ctx, ref(s.owner, n.sandbox)); n.suspendErr != nil {
		return n
	}
	_, n.listErr = eventually(ctx, s.pace.listing, func() (bool, error) { // a listing may lag
		var err error
		n.listed, err = s.lookAt(ctx, n.sandbox)
		return err == nil && (n.listed.ID == "" || n.listed.State == provider.StateSuspended), err
	})
	n.againErr = client.Suspend(ctx, ref(s.owner, n.sandbox))
	_, _ = eventually(ctx, s.pace.verdict, func() (bool, error) {
		n.ping, n.pingErr = client.Ping(ctx, s.pingRequest(n.sandbox, endpoints.Server))
		return n.pingErr == nil && n.ping.Status != provider.PingNotYet, nil
	})
	n.pinged, _ = s.lookAt(ctx, n.sandbox)
	if n.found, n.foundErr = client.Attach(ctx, s.attachRequest(n.sandbox)); n.foundErr == nil {
		if n.err = needed(client.Suspend(ctx, ref(s.owner, n.sandbox)), "Suspend"); n.err != nil {
			return n
		}
	}
	_, n.startErr = client.StartServer(ctx, s.startRequest(n.sandbox, s.server()))

	if n.startErr == nil { // it may have been woken
		if n.err = needed(client.Suspend(ctx, ref(s.owner, n.sandbox)), "Suspend"); n.err != nil {
			return n
		}
	}
	began := time.Now()
	if n.woken, n.wakeErr = client.Attach(ctx, s.attachRequest(n.sandbox)); n.wakeErr == nil {
		n.cancelled = s.cancelWaking(ctx, n.sandbox, time.Since(began))
	}
	return n
}

// lookAt returns a sandbox as the plugin lists it, which may take a moment, or an empty one if the plugin cannot list.
func (s *suite) lookAt(ctx context.Context, sandbox provider.Sandbox) (listed provider.Sandbox, _ error) {
	if !s.description.Can(provider.CapabilityList) {
		return listed, nil
	}
	found, err := eventually(ctx, s.pace.listing, func() (found bool, err error) {
		listed, found, err = s.listed(ctx, sandbox)
		return found, err
	})
	if err == nil && !found {
		err = fmt.Errorf("the sandbox %s is not listed", sandbox.ID)
	}
	return listed, err
}

// cancelWaking cancels an Attach half way. Afterwards another Attach must find the sandbox.
func (s *suite) cancelWaking(ctx context.Context, sandbox provider.Sandbox, usual time.Duration) error {
	client := s.shared.client
	return s.cut(usual, func(after time.Duration) (done bool, _ error) {
		if err := client.Suspend(ctx, ref(s.owner, sandbox)); err != nil {
			return false, fmt.Errorf("after an Attach that was cancelled Suspend fails: %s", describeError(err))
		}
		limited, cancel := context.WithTimeout(ctx, after)
		defer cancel()
		_, cutErr := client.Attach(limited, s.attachRequest(sandbox))
		wait(ctx, usual) // until the plugin has finished the call, whatever it does
		found, err := client.Attach(ctx, s.attachRequest(sandbox))
		switch {
		case err != nil:
			err = fmt.Errorf("after an Attach that was cancelled another one fails: %s", describeError(err))
		case found.ID != sandbox.ID:
			err = fmt.Errorf("after an Attach that was cancelled another one finds the sandbox %s instead of %s", found.ID, sandbox.ID)
		}
		return cutErr == nil, err
	})
}

// lastWords is what a server writes before it exits.
const lastWords = "berth check: last words"

func (s *suite) playDeaths(ctx context.Context) (d deaths) {
	client := s.shared.client
	sandbox, err := s.newSandbox(ctx, s.server())
	if err != nil {
		d.err = err
		return d
	}
	d.sandbox = sandbox
	start := func(server provider.Server) (provider.Endpoints, error) {
		return client.StartServer(ctx, s.startRequest(sandbox, server))
	}
	dies := func(server provider.Server) (d death) {
		var endpoints provider.Endpoints
		if endpoints, d.startErr = start(server); d.startErr != nil {
			return d
		}
		_, _ = eventually(ctx, s.pace.died, func() (bool, error) {
			d.ping, d.pingErr = client.Ping(ctx, s.pingRequest(sandbox, endpoints.Server))
			return d.pingErr == nil && d.ping.Status == provider.PingExited, nil
		})
		return d
	}
	d.atOnce = dies(s.script("echo " + lastWords + "; exit 7"))
	missing := s.server()
	missing.Command = []string{"/nonexistent/berth-check-server"}
	d.noCommand = dies(missing)

	// A StartServer that waits to see whether the server dies gets one that lives for longer.
	var endpoints provider.Endpoints
	for life := 2; life <= 8; life *= 2 {
		endpoints, d.startErr = start(s.script(fmt.Sprintf("echo %s; sleep %d; exit 9", lastWords, life)))
		if d.startErr == nil || provider.AsError(d.startErr).Reason != provider.ReasonServerExited {
			break
		}
	}
	if d.startErr != nil {
		return d
	}
	_, _ = eventually(ctx, s.pace.verdict, func() (bool, error) {
		d.ping, d.pingErr = client.Ping(ctx, s.pingRequest(sandbox, endpoints.Server))
		return d.pingErr == nil && d.ping.Status != provider.PingNotYet && d.ping.Status != provider.PingAlive, nil
	})
	return d
}

func (s *suite) playTalker(ctx context.Context) (t talker) {
	if t.sandbox, t.err = s.newSandbox(ctx, s.talk()); t.err == nil {
		t.endpoints, t.startErr = s.shared.client.StartServer(ctx, s.startRequest(t.sandbox, s.talk()))
	}
	if t.err == nil && t.startErr == nil && s.description.Can(provider.CapabilityLogs) {
		t.log, t.logErr = s.lines(ctx, t.sandbox, 1000)
		t.tail, t.tailErr = s.lines(ctx, t.sandbox, 3)
	}
	return t
}

// hardText is what a careless quoting spoils.
const hardText = "a  b\\n 'c' \"d\" $HOME `id` ; & | # é*"

// talk returns the talker's server, which writes its process ID, its ports and four more lines.
func (s *suite) talk() provider.Server {
	server := s.script(`echo "process $$"; echo "ports {port} $PORT $NOTE {port.extra}"; ` +
		`printf '%s\n' "value $BERTH_CHECK_HARD"; printf '%s\n' "lines $BERTH_CHECK_LINES"; printf '%s\n' "word $1"; ` +
		`echo one; echo two; echo three; echo four; exec sleep 600`)
	server.Command = append(server.Command, "berth-check", hardText)
	server.ExtraPorts = map[string]int{"extra": s.plugin.Server.Port + 1}
	server.Env["NOTE"], server.Env["BERTH_CHECK_HARD"], server.Env["BERTH_CHECK_LINES"] = "{port}", hardText, "first\n second"
	return server
}

// lines returns the talker's log once it is complete.
func (s *suite) lines(ctx context.Context, sandbox provider.Sandbox, count int) ([]string, error) {
	var lines []string
	_, err := eventually(ctx, s.pace.listing, func() (bool, error) {
		var err error
		lines, err = s.shared.client.Logs(ctx, provider.LogsRequest{SandboxRef: ref(s.owner, sandbox), Lines: count})
		return len(lines) > 0 && strings.TrimSpace(lines[len(lines)-1]) == "four", err
	})
	return lines, err
}

const (
	// many is how many calls come at once.
	many = 32
	// newcomers is how many of them create.
	newcomers = 6
)

func (s *suite) playCrowd(ctx context.Context) (c crowd) {
	r := s.running()
	if c.err = r.ready(); c.err != nil {
		return c
	}
	meeting, err := s.newSandbox(ctx, s.server()) // many attach to it
	if err != nil {
		c.err = err
		return c
	}
	client := s.shared.client
	var mutex sync.Mutex
	var all sync.WaitGroup
	failed := func(method string, err error) {
		mutex.Lock()
		defer mutex.Unlock()
		if provider.CodeOf(err) == provider.CodeExhausted {
			c.exhausted = true
		}
		c.failures = append(c.failures, method+": "+describeError(err))
	}
	for i := range many {
		all.Go(func() {
			switch {
			case i < newcomers:
				sandbox, err := s.create(ctx, client, s.createRequest(s.owner, s.session(), s.server()))
				if err != nil {
					failed("Create", err)
					return
				}
				mutex.Lock()
				defer mutex.Unlock()
				c.sandboxes = append(c.sandboxes, sandbox)
			case i%3 == 0 && s.description.Can(provider.CapabilityList):
				if _, err := client.List(ctx, provider.ListRequest{Owner: s.owner}); err != nil {
					failed("List", err)
				}
			case i%3 == 1:
				if _, err := client.Attach(ctx, s.attachRequest(meeting)); err != nil {
					failed("Attach", err)
				}
			default:
				if _, err := client.Ping(ctx, s.pingRequest(r.sandbox, r.endpoints.Server)); err != nil {
					failed("Ping", err)
				}
			}
		})
	}
	all.Wait()
	return c
}
