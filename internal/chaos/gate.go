package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/berth-dev/berth/host/cli"
	"github.com/berth-dev/berth/host/fleet"
	"github.com/berth-dev/berth/host/records"
	"github.com/berth-dev/berth/host/supervise"
	"github.com/berth-dev/berth/shared/provider"
)

// What the harness tells a host that it starts, through the environment.
const (
	roleVariable  = "BERTH_CHAOS_ROLE"
	stepVariable  = "BERTH_CHAOS_STEP"  // at which moment to wait, such as provider.Create#1:after; empty: at none
	leaseVariable = "BERTH_CHAOS_LEASE" // how long a lease is
	// Of the records:
	urlVariable   = "BERTH_CHAOS_URL"
	dirVariable   = "BERTH_CHAOS_DIR"
	ownerVariable = "BERTH_CHAOS_OWNER"
)

// The descriptors of a host: one to tell its steps, one on which it is let go on.
const (
	toldDescriptor = 3
	goOnDescriptor = 4
)

// runHost is the berth command, except that it tells every step it takes, and waits at one of them.
func runHost() int {
	g := &gate{waitAt: os.Getenv(stepVariable), counts: map[string]int{}}
	if g.waitAt != "" {
		// Not for the plugin: it would keep the pipes open.
		syscall.CloseOnExec(toldDescriptor)
		syscall.CloseOnExec(goOnDescriptor)
		g.told, g.goOn = os.NewFile(toldDescriptor, "steps"), os.NewFile(goOnDescriptor, "go on")
	}
	options := fleet.Options{
		Provider: func(_ string, p *supervise.Plugin) provider.Provider {
			g.plugin.Store(p)
			return &steppedProvider{Plugin: p, gate: g}
		},
		Records: func(s records.Store) records.Store { return &steppedRecords{Store: reopened(s), gate: g} },
	}
	return cli.Main(os.Args[1:], os.Stdout, os.Stderr, os.LookupEnv, options)
}

// reopened opens the records once more where the harness wants a shorter lease than a configuration may have.
func reopened(s records.Store) records.Store {
	lease := os.Getenv(leaseVariable)
	if lease == "" {
		return s
	}
	s.Close()
	return must(records.Open(context.Background(), records.Options{
		Dir: os.Getenv(dirVariable), Owner: os.Getenv(ownerVariable), URL: os.Getenv(urlVariable), Lease: must(time.ParseDuration(lease)),
	}))
}

// must is for hosts, whose end the harness notices.
func must[T any](value T, err error) T {
	if err != nil {
		fmt.Fprintln(os.Stderr, "chaos:", err)
		os.Exit(1)
	}
	return value
}

// gate tells the harness what the host is about to do and has done.
type gate struct {
	waitAt     string
	told, goOn *os.File
	plugin     atomic.Pointer[supervise.Plugin]

	mutex  sync.Mutex
	counts map[string]int // by call
}

// moment is one end of a step as the harness hears of it.
type moment struct {
	step   string // CALL#N
	end    string // before or after
	plugin int    // the plugin's process, 0 while there is none
	at     time.Time
}

func (m moment) String() string { return m.step + ":" + m.end }

const everyMoment = "none" // tells all and waits nowhere

// pass does one step.
func pass[T any](g *gate, call string, do func() (T, error)) (T, error) {
	if g.told == nil {
		return do()
	}
	g.mutex.Lock()
	g.counts[call]++
	step := fmt.Sprintf("%s#%d", call, g.counts[call])
	g.mutex.Unlock()
	g.tell(step + ":before")
	value, err := do()
	g.tell(step + ":after")
	return value, err
}

func (g *gate) tell(moment string) {
	pid := 0
	if p := g.plugin.Load(); p != nil {
		pid = p.Pid()
	}
	fmt.Fprintf(g.told, "%s %d %d\n", moment, pid, time.Now().UnixNano())
	if moment == g.waitAt {
		_, _ = g.goOn.Read(make([]byte, 1)) // its end is as good
	}
}

// readMoments passes on what a host tells, until its end.
func readMoments(told *os.File, heard func(moment)) {
	for lines := bufio.NewScanner(told); lines.Scan(); {
		parts := strings.Fields(lines.Text())
		if len(parts) != 3 {
			continue // cut off by a kill
		}
		step, end, _ := strings.Cut(parts[0], ":")
		pid, _ := strconv.Atoi(parts[1])
		at, _ := strconv.ParseInt(parts[2], 10, 64)
		heard(moment{step, end, pid, time.Unix(0, at)})
	}
}

type none = struct{}

func passError(g *gate, call string, do func() error) error {
	_, err := pass(g, call, func() (none, error) { return none{}, do() })
	return err
}

// steppedProvider tells each call on the provider.
type steppedProvider struct {
	*supervise.Plugin
	gate *gate
}

func (p *steppedProvider) Create(ctx context.Context, req provider.CreateRequest) (provider.Sandbox, error) {
	return pass(p.gate, "provider.Create", func() (provider.Sandbox, error) { return p.Plugin.Create(ctx, req) })
}

func (p *steppedProvider) Attach(ctx context.Context, req provider.AttachRequest) (provider.Sandbox, error) {
	return pass(p.gate, "provider.Attach", func() (provider.Sandbox, error) { return p.Plugin.Attach(ctx, req) })
}

func (p *steppedProvider) StartServer(ctx context.Context, req provider.StartServerRequest) (provider.Endpoints, error) {
	return pass(p.gate, "provider.StartServer", func() (provider.Endpoints, error) { return p.Plugin.StartServer(ctx, req) })
}

func (p *steppedProvider) Ping(ctx context.Context, req provider.PingRequest) (provider.PingResult, error) {
	return pass(p.gate, "provider.Ping", func() (provider.PingResult, error) { return p.Plugin.Ping(ctx, req) })
}

func (p *steppedProvider) List(ctx context.Context, req provider.ListRequest) ([]provider.Sandbox, error) {
	return pass(p.gate, "provider.List", func() ([]provider.Sandbox, error) { return p.Plugin.List(ctx, req) })
}

func (p *steppedProvider) Renew(ctx context.Context, req provider.RenewRequest) (time.Time, error) {
	return pass(p.gate, "provider.Renew", func() (time.Time, error) { return p.Plugin.Renew(ctx, req) })
}

func (p *steppedProvider) Suspend(ctx context.Context, ref provider.SandboxRef) error {
	return passError(p.gate, "provider.Suspend", func() error { return p.Plugin.Suspend(ctx, ref) })
}

func (p *steppedProvider) Destroy(ctx context.Context, ref provider.SandboxRef) error {
	return passError(p.gate, "provider.Destroy", func() error { return p.Plugin.Destroy(ctx, ref) })
}

// steppedRecords tells each call on the records.
type steppedRecords struct {
	records.Store
	gate *gate
}

func (s *steppedRecords) Take(ctx context.Context, id string) (records.Lease, records.Record, error) {
	var record records.Record
	lease, err := pass(s.gate, "records.Take", func() (lease records.Lease, err error) {
		lease, record, err = s.Store.Take(ctx, id)
		return lease, err
	})
	return lease, record, err
}

func (s *steppedRecords) Check(ctx context.Context, lease records.Lease) error {
	return passError(s.gate, "records.Check", func() error { return s.Store.Check(ctx, lease) })
}

func (s *steppedRecords) Save(ctx context.Context, lease records.Lease, record records.Record) error {
	return passError(s.gate, "records.Save", func() error { return s.Store.Save(ctx, lease, record) })
}

func (s *steppedRecords) Release(ctx context.Context, lease records.Lease, record records.Record) error {
	return passError(s.gate, "records.Release", func() error { return s.Store.Release(ctx, lease, record) })
}

func (s *steppedRecords) SaveAttempt(ctx context.Context, lease records.Lease, attempt records.Attempt) error {
	return passError(s.gate, "records.SaveAttempt", func() error { return s.Store.SaveAttempt(ctx, lease, attempt) })
}

func (s *steppedRecords) Owed(ctx context.Context, session string) ([]records.Attempt, error) {
	return pass(s.gate, "records.Owed", func() ([]records.Attempt, error) { return s.Store.Owed(ctx, session) })
}

func (s *steppedRecords) Get(ctx context.Context, id string) (records.Record, error) {
	return pass(s.gate, "records.Get", func() (records.Record, error) { return s.Store.Get(ctx, id) })
}

func (s *steppedRecords) List(ctx context.Context) ([]records.Record, error) {
	return pass(s.gate, "records.List", func() ([]records.Record, error) { return s.Store.List(ctx) })
}

func (s *steppedRecords) Forget(ctx context.Context, before time.Time) (int, error) {
	return pass(s.gate, "records.Forget", func() (int, error) { return s.Store.Forget(ctx, before) })
}

func (s *steppedRecords) Began(ctx context.Context) (time.Time, error) {
	return pass(s.gate, "records.Began", func() (time.Time, error) { return s.Store.Began(ctx) })
}

func (s *steppedRecords) Close() error {
	return passError(s.gate, "records.Close", func() error { return s.Store.Close() })
}
