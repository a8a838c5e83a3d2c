package providertest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/berth-dev/berth/shared/provider"
)

// Clouds that fail: the attributes that hold URLs lead to the suite instead.

// addresses returns the attributes of the configuration that hold the URL of a cloud.
func (s *suite) addresses() map[string]*url.URL {
	found := map[string]*url.URL{}
	for _, a := range s.description.Attributes {
		text, ok := s.config[a.Name].(string)
		if raw, isDefault := s.config[a.Name].(json.RawMessage); isDefault {
			ok = json.Unmarshal(raw, &text) == nil
		}
		if u, err := url.Parse(text); ok && err == nil && u.Host != "" && (u.Scheme == "http" || u.Scheme == "https") {
			found[a.Name] = u
		}
	}
	return found
}

// elsewhere returns values for the attributes that hold URLs: the same ones at another host. Placeholders stay.
func elsewhere(addresses map[string]*url.URL, host string) map[string]string {
	values := map[string]string{}
	for name, address := range addresses {
		u := *address
		u.Scheme, u.Host = "http", host
		values[name] = strings.ReplaceAll(strings.ReplaceAll(u.String(), "%7B", "{"), "%7D", "}")
	}
	return values
}

// outage is how a plugin's calls end when its cloud gives one answer to everything.
type outage struct {
	answer    string
	codes     []provider.Code // what an Attach may make of the answer
	configure error           // of a plugin that asks its cloud already when it is configured
	heard     bool            // the cloud was asked over HTTP, so that it could answer
	errs      map[string]error
	ping      provider.PingResult
}

// answers are what a failing cloud says: the status, and what an Attach may make of it.
var answers = []struct {
	name   string
	answer http.HandlerFunc
	codes  []provider.Code
}{
	{"500", said(http.StatusInternalServerError, `{"message": "berth check"}`), []provider.Code{provider.CodeUnreachable, provider.CodeFailed}},
	{"403", said(http.StatusForbidden, `{"message": "berth check"}`), []provider.Code{provider.CodeDenied}},
	{"429", said(http.StatusTooManyRequests, `{"message": "berth check"}`), []provider.Code{provider.CodeExhausted}},
	{"a page that is not the API's", said(http.StatusOK, "<html>berth check</html>"),
		[]provider.Code{provider.CodeUnreachable, provider.CodeFailed, provider.CodeInternal}},
}

// patienceAsked is how long a failing cloud asks to wait: longer than anybody should wait within a call.
const patienceAsked = time.Hour

func said(status int, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		kind := "application/json"
		if strings.HasPrefix(body, "<") {
			kind = "text/html"
		}
		w.Header().Set("Content-Type", kind)
		w.Header().Set("Retry-After", strconv.Itoa(int(patienceAsked.Seconds())))
		w.WriteHeader(status)
		fmt.Fprint(w, body)
	}
}

func (s *suite) playOutages(ctx context.Context) ([]outage, error) {
	r := s.running()
	if err := r.ready(); err != nil {
		return nil, err
	}
	addresses := s.addresses()
	if len(addresses) == 0 {
		return nil, skipf("the configuration holds no URL, so there is no cloud that could fail")
	}
	outages, failures := make([]outage, len(answers)), make([]error, len(answers))
	var all sync.WaitGroup
	for n := range answers {
		all.Go(func() { outages[n], failures[n] = s.playOutage(ctx, addresses, n, r.sandbox) })
	}
	all.Wait()
	return outages, errors.Join(failures...)
}

func (s *suite) playOutage(ctx context.Context, addresses map[string]*url.URL, n int, sandbox provider.Sandbox) (o outage, err error) {
	var heard atomic.Bool
	host, stop := serve(func(w http.ResponseWriter, r *http.Request) {
		heard.Store(heard.Load() || r.ProtoMajor == 1) // the answers mean nothing to gRPC
		answers[n].answer(w, r)
	})
	defer stop()
	o = outage{answer: answers[n].name, codes: answers[n].codes, errs: map[string]error{}}
	i, err := s.open(ctx, func(values map[string]any) {
		for name, value := range elsewhere(addresses, host) {
			values[name] = value
		}
	})
	if err != nil && (i == nil || i.client == nil) {
		return o, needed(err, "starting another process of the plugin")
	}
	if o.configure = err; err != nil {
		return o, nil
	}
	ctx, cancel := context.WithTimeout(ctx, attachTime)
	defer cancel()
	s.callAll(ctx, i.client, sandbox, &o)
	o.heard = heard.Load()
	return o, nil
}

// callAll makes the calls that look a sandbox up, side by side.
func (s *suite) callAll(ctx context.Context, client *provider.Client, sandbox provider.Sandbox, o *outage) {
	var all sync.WaitGroup
	var mutex sync.Mutex
	call := func(method string, do func() error) {
		all.Go(func() {
			err := do()
			mutex.Lock()
			defer mutex.Unlock()
			o.errs[method] = err
		})
	}
	call("Attach", func() error {
		_, err := client.Attach(ctx, s.attachRequest(provider.Sandbox{Session: sandbox.Session}))
		return err
	})
	call("Attach with an id", func() error { _, err := client.Attach(ctx, s.attachRequest(sandbox)); return err })
	call("StartServer", func() error { _, err := client.StartServer(ctx, s.startRequest(sandbox, s.server())); return err })
	call("Ping", func() error {
		dead, err := deadAddress(ctx)
		if err != nil {
			return err
		}
		_, err = eventually(ctx, silence, func() (bool, error) {
			var err error
			o.ping, err = client.Ping(ctx, s.pingRequest(sandbox, provider.Endpoint{URL: "http://" + dead}))
			return err == nil && o.ping.Status != provider.PingNotYet, err
		})
		return err
	})
	if s.description.Can(lists) {
		call("List", func() error { _, err := client.List(ctx, provider.ListRequest{Owner: s.owner}); return err })
		call("List of a session", func() error {
			_, err := client.List(ctx, provider.ListRequest{Owner: s.owner, Session: sandbox.Session})
			return err
		})
	}
	if s.description.Can(destroys) {
		call("Destroy", func() error { return client.Destroy(ctx, ref(s.owner, sandbox)) })
	}
	all.Wait()
}

// inOutages looks at what calls made of each answer of a failing cloud.
func (t *trial) inOutages(judge func(o outage) error) error {
	outages, err := t.outages()
	if err != nil {
		return err
	}
	judged := false
	for _, o := range outages {
		if o.configure != nil {
			continue
		}
		judged = true
		if err := judge(o); err != nil {
			return fmt.Errorf("a cloud that answers %s: %w", o.answer, err)
		}
	}
	if !judged {
		return skipf("the plugin asks its cloud already in Configure, which failed: %s", describeError(outages[0].configure))
	}
	return nil
}

// notMistaken returns an error if a failing cloud was taken for one that works, or for one that knows of no sandbox.
func notMistaken(method string, err error) error {
	switch provider.CodeOf(err) {
	case "":
		return fmt.Errorf("%s succeeds", method)
	case provider.CodeNotFound:
		return fmt.Errorf("%s answers %s", method, describeError(err))
	}
	return nil
}

func cloudAttach(_ context.Context, t *trial) error {
	return t.inOutages(func(o outage) error {
		for _, method := range []string{"Attach", "Attach with an id"} {
			err := o.errs[method]
			if mistaken := notMistaken(method, err); mistaken != nil {
				return mistaken
			}
			if code := provider.CodeOf(err); o.heard && code != provider.CodeTimeout && !slices.Contains(o.codes, code) {
				return fmt.Errorf("%s answers %s", method, describeError(err))
			}
		}
		return nil
	})
}

func cloudRetryAfter(_ context.Context, t *trial) error {
	return t.inOutages(func(o outage) error {
		e := provider.AsError(o.errs["Attach"])
		if e == nil || e.Code != provider.CodeExhausted {
			return nil
		}
		if e.RetryAfter < patienceAsked-time.Minute || e.RetryAfter > patienceAsked+time.Minute {
			return fmt.Errorf("asked for %s of patience, the error says %s", patienceAsked, e.RetryAfter)
		}
		return nil
	})
}

func cloudCalls(methods ...string) func(context.Context, *trial) error {
	return func(_ context.Context, t *trial) error {
		return t.inOutages(func(o outage) error {
			for _, method := range methods {
				if err := notMistaken(method, o.errs[method]); err != nil {
					return err
				}
			}
			return nil
		})
	}
}

func cloudPing(_ context.Context, t *trial) error {
	return t.inOutages(func(o outage) error {
		switch {
		case provider.CodeOf(o.errs["Ping"]) == provider.CodeNotFound:
			return notMistaken("Ping", o.errs["Ping"])
		case o.ping.Status == provider.PingGone, o.ping.Status == provider.PingStopped, o.ping.Status == provider.PingExited:
			return fmt.Errorf("it answers %s: %s", o.ping.Status, o.ping.Reason)
		}
		return nil
	})
}

// mostAnswers is how many answers of the cloud are lost in turn.
const mostAnswers = 6

// lossy stands between a plugin and its cloud, and can lose the answer to a request that changes something.
type lossy struct {
	mutex sync.Mutex
	// count is how many requests that change something have been answered, and lose the one whose answer gets lost: from 1.
	count, lose int
}

func (l *lossy) arm(lose int) {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	l.count, l.lose = 0, lose
}

func (l *lossy) counted() int {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	return l.count
}

var errLost = errors.New("the answer gets lost")

// pass lets an answer of the cloud through, or not.
func (l *lossy) pass(r *http.Response) error {
	if r.Request.Method == http.MethodGet || r.Request.Method == http.MethodHead || r.StatusCode >= 300 {
		return nil
	}
	l.mutex.Lock()
	defer l.mutex.Unlock()
	if l.count++; l.count == l.lose {
		return errLost
	}
	return nil
}

// between returns a server on this machine that passes everything on to an address and back.
func (l *lossy) between(address *url.URL) (host string, stop func()) {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	plain := transport.Clone() // for gRPC without TLS
	plain.Protocols = new(http.Protocols)
	plain.Protocols.SetUnencryptedHTTP2(true)
	proxy := &httputil.ReverseProxy{
		Transport: roundTripper(func(r *http.Request) (*http.Response, error) {
			if r.ProtoMajor == 2 && address.Scheme == "http" {
				return plain.RoundTrip(r)
			}
			return transport.RoundTrip(r)
		}),
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme, r.Out.URL.Host, r.Out.Host = address.Scheme, address.Host, address.Host
		},
		FlushInterval:  -1,
		ModifyResponse: l.pass,
		ErrorHandler: func(_ http.ResponseWriter, r *http.Request, _ error) {
			r.Context().Value(connection{}).(net.Conn).Close()
			panic(http.ErrAbortHandler)
		},
	}
	host, stopServer := serve(proxy.ServeHTTP)
	return host, func() {
		stopServer()
		transport.CloseIdleConnections()
		plain.CloseIdleConnections()
	}
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// openBehind starts a process of the plugin that reaches its cloud through l.
func (t *trial) openBehind(ctx context.Context, l *lossy) (i *instance, stop func(), err error) {
	addresses := t.addresses()
	maps.DeleteFunc(addresses, func(_ string, u *url.URL) bool { return strings.Contains(u.Host, "{") }) // no single host
	if len(addresses) == 0 {
		return nil, nil, skipf("the configuration holds no URL, so the suite cannot stand between the plugin and its cloud")
	}
	var stops []func()
	stop = func() {
		for _, stop := range stops {
			stop()
		}
	}
	values := map[string]string{}
	for name, address := range addresses {
		host, stopOne := l.between(address)
		stops = append(stops, stopOne)
		maps.Copy(values, elsewhere(map[string]*url.URL{name: address}, host))
	}
	i, err = t.open(ctx, func(have map[string]any) {
		for name, value := range values {
			have[name] = value
		}
	})
	if err != nil {
		stop()
		return nil, nil, skipf("the plugin does not take the suite for its cloud: %s", describeError(err))
	}
	return i, stop, nil
}

func createLostAnswer(ctx context.Context, t *trial) error {
	if err := t.running().ready(); err != nil {
		return err
	}
	l := &lossy{}
	i, stop, err := t.openBehind(ctx, l)
	if err != nil {
		return err
	}
	defer stop()
	began := time.Now()
	if _, err := t.create(ctx, i.client, t.createRequest(t.owner, t.session(), t.server())); err != nil {
		return skipf("the plugin's cloud cannot be reached through the suite: %s", describeError(err))
	}
	usual, count := time.Since(began), l.counted()
	if count == 0 {
		return skipf("the plugin reaches its cloud in another way than over HTTP at the URL of its configuration")
	}
	lost := min(count, mostAnswers)
	for n := 1; n <= lost; n++ {
		l.arm(n)
		session := t.session()
		made, err := t.create(ctx, i.client, t.createRequest(t.owner, session, t.server()))
		named := made.ID
		if err != nil {
			named = provider.AsError(err).SandboxID
		}
		if left := t.leavesNothing(ctx, session, named, usual/2, t.pace.listing); left != nil {
			return fmt.Errorf("answer number %d of the cloud was lost, and Create said %s: %w", n, describeError(err), left)
		}
		t.saw("of %d answers %d were lost in turn; the last time Create said %s", count, lost, describeError(err))
	}
	return nil
}
