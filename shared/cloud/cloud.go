// Package cloud is a kit for providers whose sandboxes are machines of a cloud with an API. An author writes what only
// that cloud knows: its configuration, one method a call, how its states map to ours. The kit does what every provider
// needs and nobody should write twice: finding a session's sandbox and proving whose it is, adopting it, settling a create
// whose answer was lost, giving way to a rival, undoing, bringing a sandbox to run, starting one server and no second,
// delivering its environment exactly, telling why a server does not answer, and trying again as the cloud asks.
//
// Embed *Provider in a type of your own, and give that the methods of provider.Renewer and provider.Suspender if the cloud
// can do these. Provider has all others.
//
// The files, from the top down: cloud.go (what an author implements), create.go, attach.go, server.go, ping.go and
// housekeeping.go (the calls of the contract), script.go with server.sh and supervisor.sh (what runs in a sandbox), http.go
// (a JSON API), config.go, retry.go and errors.go (tools).
package cloud

import (
	"context"
	"net/http"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/berth-dev/berth/shared/provider"
)

// Cloud is what an author writes for one cloud. B is the cloud's own form of a sandbox: what its API says of one, with
// whatever opens it. Methods are called concurrently. Errors are *provider.Error; each method may repeat a call within
// itself where that is safe (see Repeat and API), and ends with ctx.
type Cloud[B any] interface {
	// Describe returns a sandbox as the host knows sandboxes, with the labels it was made with. It calls nobody. Detail is
	// the cloud's word for the state. A State that the cloud may leave by itself is StateStarting or StateUnknown.
	Describe(box B) provider.Sandbox

	// Look returns a sandbox by its id, in whatever state. CodeNotFound: the cloud says that there is none. An id that no
	// sandbox of this cloud can have is CodeInvalid.
	Look(ctx context.Context, id string) (B, error)

	// Find returns what has the session's name or labels and has not ended, in the way that lags least. Sandboxes that turn
	// out to be another owner's are refused by the kit.
	Find(ctx context.Context, owner, session string) ([]B, error)

	// List returns the sandboxes that have not ended and whose labels match, all pages of them. It may return more: the kit
	// filters.
	List(ctx context.Context, req provider.ListRequest) ([]B, error)

	// Make asks the cloud once for a sandbox with req.AllLabels and, if the cloud has names, the name. req.Lifetime is set.
	// CodeConflict: the name is taken. After an error for which MayHaveWorked holds, the kit looks before it asks again;
	// where the cloud has a key that makes a create idempotent, it is derived from req.Attempt.
	Make(ctx context.Context, name string, req provider.CreateRequest) (B, error)

	// Wake asks for a sandbox to run that is suspended or has failed, and returns it as it is then: it may still be on its
	// way. One that cannot be woken is an error. Where the cloud arms the lifetime on waking, it does so with lifetime.
	Wake(ctx context.Context, box B, lifetime time.Duration) (B, error)

	// Endpoints returns how ports of a running sandbox are reached, by port: those that servers ask for. A public URL without a key is an error, unless
	// the configuration accepts it.
	Endpoints(ctx context.Context, box B, ports []int) (map[int]provider.Endpoint, error)

	// Run runs a script in a running sandbox and returns what it has printed to its standard output, as soon as
	// Script.Complete holds or it has ended. A script with Launches goes on after that and must not be ended. A failure that
	// may pass, such as a sandbox whose daemon is not up yet, is Retryable.
	Run(ctx context.Context, box B, script Script) (string, error)

	// Remove ends a sandbox for good and returns once nothing of it is billed. One that is gone is a success.
	Remove(ctx context.Context, box B) error
}

// Waiter is a Cloud that can wait for a sandbox that is on its way. Others are polled with Look.
type Waiter[B any] interface {
	// Await returns the sandbox once its state has changed, or after a while.
	Await(ctx context.Context, box B) (B, error)
}

// Finder is a Cloud that must be told that a running sandbox which was found is in use again: to renew its life, or to
// learn what opens it.
type Finder[B any] interface {
	// Found returns the sandbox as it is then. woken reports whether it was just woken, or turns out to have been.
	Found(ctx context.Context, box B, woken bool, lifetime time.Duration) (now B, wokenNow bool, err error)
}

// Granter is a Cloud that cannot give a server the ports it asks for.
type Granter[B any] interface {
	// Grant returns the ports to listen on, by those that are asked for: the same ones each time.
	Grant(ctx context.Context, box B, ports []int) (map[int]int, error)
}

// Denier is a Cloud whose way to servers refuses headers for another reason, too, than that they are wrong: while it cannot
// ask the cloud. That passes, and so does a refusal while the cloud cannot be asked about it.
type Denier[B any] interface {
	// Denied reports whether the headers are wrong, and explains it in words, which may be empty. It is asked seldom.
	Denied(ctx context.Context, box B, endpoint provider.Endpoint) (wrong bool, why string)
}

// Options are what the kit must know of a cloud.
type Options struct {
	// Name is the cloud's, for errors.
	Name string
	// UniqueNames reports whether the cloud refuses a second sandbox with the same name. Otherwise the kit looks before it
	// makes one, and again afterwards: of several that were made at the same time, the makers remove all but one.
	UniqueNames bool
	// Port is the one a server gets that asks for none. Zero means 8000.
	Port int
	// Env are variables that a server gets unless it has its own of that name.
	Env map[string]string
	// Stay keeps the script that starts a server running for as long as the server does.
	Stay bool
	// ProbeHeaders go with every health question beside the endpoint's own.
	ProbeHeaders map[string]string
	// Times are how patient the kit is. The zero value of each means that of DefaultTimes.
	Times Times
	Log   hclog.Logger
}

// Times are how long things may take, and how often others are asked.
type Times struct {
	// Retry is for asking again for a sandbox, or for a script to be run.
	Retry Retry
	// Poll is the first pause between two looks at a sandbox that is on its way. It grows up to PollMost.
	Poll, PollMost time.Duration
	// Taken is how long a name may be taken although no sandbox is found that has it.
	Taken time.Duration
	// Lost is how long a sandbox is looked for that a create may have made whose answer was lost.
	Lost time.Duration
	// Rivals is how long it may take until a new sandbox is listed, and its maker has removed it if there is another one for
	// the session. A sandbox that is older than that stays.
	Rivals time.Duration
	// Undo is how long a failed Create may take to remove what it made.
	Undo time.Duration
	// Reach is how long a sandbox that runs may take until scripts can be run in it, and Script how long one may run.
	Reach, Script time.Duration
	// FirstLook is how soon after its start a server that does not answer is looked at. The pause then doubles, up to
	// LookServer: one that died at once is found at once, and one that takes long to boot is left alone.
	FirstLook time.Duration
	// Patience is how long a server may not answer before the cloud is asked why.
	Patience time.Duration
	// LookServer and LookCloud are the least times between two looks at a server's process, and between two calls of the
	// control API, for one sandbox whose server does not answer.
	LookServer, LookCloud time.Duration
}

// DefaultTimes are right for most clouds.
var DefaultTimes = Times{
	Retry: Retry{Tries: 4, First: 250 * time.Millisecond, Most: 2 * time.Second, Longest: 10 * time.Second},
	Poll:  250 * time.Millisecond, PollMost: 2 * time.Second, Taken: 30 * time.Second,
	Lost: 2 * time.Second, Rivals: 4 * time.Second, Undo: 10 * time.Second, Reach: 20 * time.Second, Script: 15 * time.Second,
	FirstLook: 200 * time.Millisecond, Patience: time.Second, LookServer: 2 * time.Second, LookCloud: 5 * time.Second,
}

func (t Times) withDefaults() Times {
	if t.Retry.Tries == 0 {
		t.Retry = DefaultTimes.Retry
	}
	for _, d := range []struct{ have, standard *time.Duration }{
		{&t.Poll, &DefaultTimes.Poll}, {&t.PollMost, &DefaultTimes.PollMost}, {&t.Taken, &DefaultTimes.Taken},
		{&t.Lost, &DefaultTimes.Lost}, {&t.Rivals, &DefaultTimes.Rivals}, {&t.Undo, &DefaultTimes.Undo},
		{&t.Reach, &DefaultTimes.Reach}, {&t.Script, &DefaultTimes.Script}, {&t.FirstLook, &DefaultTimes.FirstLook}, {&t.Patience, &DefaultTimes.Patience},
		{&t.LookServer, &DefaultTimes.LookServer}, {&t.LookCloud, &DefaultTimes.LookCloud},
	} {
		if *d.have == 0 {
			*d.have = *d.standard
		}
	}
	return t
}

// defaultLifetime is for a caller that names none: a sandbox without an end is paid for until somebody notices.
const defaultLifetime = time.Hour

// Provider fulfils the contract for a cloud. Make one with New. Its methods may be called concurrently.
type Provider[B any] struct {
	cloud   Cloud[B]
	options Options
	times   Times
	log     hclog.Logger
	probe   *http.Client

	mutex   sync.Mutex
	boxes   map[string]B      // by id: those that were seen running
	watches map[string]*watch // by id: those whose server was started or does not answer
}

// What a Provider can do without any help of its author's.
var _ interface {
	provider.Provider
	provider.Lister
	provider.Destroyer
	provider.LogReader
} = (*Provider[struct{}])(nil)

// New makes a provider of a cloud.
func New[B any](c Cloud[B], o Options) *Provider[B] {
	if o.Port == 0 {
		o.Port = 8000
	}
	return &Provider[B]{
		cloud: c, options: o, times: o.Times.withDefaults(), log: o.Log, probe: provider.NewProbeClient(),
		boxes: map[string]B{}, watches: map[string]*watch{},
	}
}

// Close lets go of idle connections.
func (p *Provider[B]) Close() error {
	p.probe.CloseIdleConnections()
	return nil
}

// remembered bounds what is remembered of sandboxes. What is forgotten is asked for again.
const remembered = 10_000

// remember keeps a running sandbox, so that the next call on it need not look it up.
func (p *Provider[B]) remember(box B) {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	if len(p.boxes) >= remembered {
		clear(p.boxes)
	}
	p.boxes[p.cloud.Describe(box).ID] = box
}

// recall returns a running sandbox of the owner's, if this process remembers one.
func (p *Provider[B]) recall(ref provider.SandboxRef) (B, bool) {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	box, found := p.boxes[ref.SandboxID]
	return box, found && owned(p.cloud.Describe(box), ref.Owner, "") == nil
}

// Forget drops what is remembered of a sandbox. An author's Suspend calls it.
func (p *Provider[B]) Forget(id string) {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	delete(p.boxes, id)
	delete(p.watches, id)
}

// Own looks a sandbox up for its owner. One that has ended is CodeNotFound, another owner's is CodeConflict.
func (p *Provider[B]) Own(ctx context.Context, ref provider.SandboxRef) (B, error) {
	var none B
	if ref.SandboxID == "" {
		return none, provider.Errorf(provider.CodeInvalid, "the sandbox's id is missing")
	}
	box, err := p.cloud.Look(ctx, ref.SandboxID)
	if err != nil {
		return none, About(err, ref.SandboxID)
	}
	s := p.cloud.Describe(box)
	if s.State == provider.StateGone {
		return none, Gone(s.ID, s.Detail)
	}
	return box, owned(s, ref.Owner, "")
}
