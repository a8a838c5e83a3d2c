package cloudtest

import (
	"maps"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/berth-dev/berth/plugins/internal/simcloud"
	"github.com/berth-dev/berth/shared/provider"
)

func testVerdicts(f *fixture) {
	const silent = "exec sleep 1000"
	type ending struct {
		script string
		Ending
	}
	endings := map[string]ending{
		"TheServerDies":         {"sleep 3; echo last words; exit 3", Ending{nil, provider.PingExited, "code 3"}},
		"TheServerIsKilled":     {"sleep 3; kill -9 $$", Ending{nil, provider.PingExited, "code 137"}},
		"TheSandboxEnds":        {silent, Ending{func(w *World, id string) { w.End(id) }, provider.PingGone, ""}},
		"TheSandboxIsSuspended": {silent, Ending{func(w *World, id string) { w.Suspend(id) }, provider.PingStopped, ""}},
	}
	for name, e := range f.cloud.Endings {
		endings[name] = ending{silent, e}
	}
	for name, e := range endings {
		f.Run(name, func(t *testing.T) {
			t.Parallel()
			f := f.with(t)
			f.start(Options{})
			if e.Status == provider.PingStopped && f.Suspend == nil {
				t.Skip(f.cloud.Plugin + " cannot suspend a sandbox, so none stops while its server boots")
			}
			p := f.open(Normal)
			sandbox := Create(t, p, "s1")
			endpoints := Start(t, p, sandbox, Shell(e.script))
			limit := 6 * time.Second
			if e.Happen == nil {
				limit += 3 * time.Second // when it happens
			} else {
				if result := Ping(t, p, sandbox, endpoints); result.Status != provider.PingNotYet {
					t.Errorf("the first ping: %+v", result)
				}
				e.Happen(f.World, sandbox.ID)
			}
			began := time.Now()
			result := f.awaitVerdict(p, sandbox, endpoints, 2*limit)
			if took := time.Since(began); took > limit {
				t.Errorf("took %s", took)
			}
			f.checkVerdict(result, e.Ending)
			f.checkVerdict(AwaitPing(t, f.open(Brisk), sandbox, endpoints), e.Ending) // another process
			if e.Status == provider.PingExited {
				f.checkVerdict(Ping(t, f.open(Normal), sandbox, endpoints), e.Ending) // which asks once
				attached := f.open(Normal)
				if _, err := attached.Attach(t.Context(), AttachRequest("s1")); err != nil {
					t.Fatal(err)
				}
				f.checkVerdict(Ping(t, attached, sandbox, endpoints), e.Ending)
			}
		})
	}
}

func (f *fixture) checkVerdict(result provider.PingResult, want Ending) {
	f.Helper()
	if result.Status != want.Status || !strings.Contains(result.Reason, want.Reason) {
		f.Errorf("%+v", result)
	}
	if want.Status == provider.PingExited && (result.ExitCode == nil || *result.ExitCode == 3 && strings.Join(result.LogTail, "") != "last words") {
		f.Errorf("%+v", result)
	}
}

// awaitVerdict pings as a host does, at its pace.
func (f *fixture) awaitVerdict(p provider.Provider, sandbox provider.Sandbox, endpoints provider.Endpoints, limit time.Duration) provider.PingResult {
	f.Helper()
	var last provider.PingResult
	for began := time.Now(); time.Since(began) < limit; {
		if last = Ping(f.T, p, sandbox, endpoints); last.Status != provider.PingNotYet && last.Status != provider.PingDenied {
			break
		}
		time.Sleep(min(max(time.Since(began)/10, 15*time.Millisecond), time.Second))
	}
	return last
}

func testSilence(f *fixture) {
	silences := map[string]func(w *World, id string){"ItsPortStaysClosed": func(*World, string) {}}
	maps.Copy(silences, f.cloud.Silences)
	for name, silence := range silences {
		f.Run(name, func(t *testing.T) {
			t.Parallel()
			f := f.with(t)
			f.start(Options{})
			p := f.open(Normal)
			sandbox := Create(t, p, "s1")
			endpoints := Start(t, p, sandbox, Shell("exec sleep 1000"))
			silence(f.World, sandbox.ID)
			began := time.Now()
			result := f.awaitVerdict(p, sandbox, endpoints, 8*time.Second)
			if result.Status != provider.PingNotYet {
				t.Errorf("%+v", result)
			}
			if name == "ItsPortStaysClosed" {
				Eventually(t, "a ping tells that nothing listens", func() bool {
					return strings.Contains(Ping(t, p, sandbox, endpoints).Reason, "runs, but nothing listens on port 8000")
				})
			}
			calls := f.control(began)
			if most := 1 + int(time.Since(began)/(5*time.Second)); len(calls) > most {
				t.Errorf("%d calls in %s", len(calls), time.Since(began))
			}
			for i := 1; i < len(calls); i++ {
				if gap := calls[i].Time.Sub(calls[i-1].Time); gap < 4900*time.Millisecond {
					t.Errorf("a %s and a %s within %s", calls[i-1].Operation, calls[i].Operation, gap)
				}
			}
			f.left(1)
		})
	}
}

func testIPv6Only(f *fixture) {
	p := f.start(Options{})
	sandbox := Create(f.T, p, "s1")
	server := ActionServer()
	server.Env = map[string]string{"HOST": "::1"}
	endpoints := Start(f.T, p, sandbox, server)
	Eventually(f.T, "a ping tells where it listens", func() bool {
		result := Ping(f.T, p, sandbox, endpoints)
		if result.Status != provider.PingNotYet {
			f.Fatalf("%+v", result)
		}
		return strings.Contains(result.Reason, "listens on ::1 only")
	})
}

func testHealthWait(f *fixture) {
	f.start(Options{})
	p := f.open(Normal)
	sandbox := Create(f.T, p, "s1")
	endpoints := Start(f.T, p, sandbox, Shell("sleep 1; exec berth-action-server --port {port}"))
	began := time.Now()
	if result := f.awaitVerdict(p, sandbox, endpoints, 20*time.Second); result.Status != provider.PingAlive {
		f.Fatalf("%+v", result)
	}
	if calls := f.control(began); len(calls) > 1 { // one, if this machine was so slow that the wait seemed to fail
		f.Errorf("%d calls, the first a %s", len(calls), calls[0].Operation)
	}
	began = time.Now()
	for range 20 {
		if result := Ping(f.T, p, sandbox, endpoints); result.Status != provider.PingAlive {
			f.Errorf("%+v", result)
		}
	}
	if calls := f.Traffic.Since(began); len(calls) != 20 {
		f.Errorf("20 pings made %d calls", len(calls))
	}
}

func testUnknownState(f *fixture) {
	p := f.start(Options{})
	if f.Hibernate == nil {
		f.Skip("the cloud has no states")
	}
	sandbox := Create(f.T, p, "s1")
	endpoints := Start(f.T, p, sandbox, Shell("exec sleep 1000"))
	f.Hibernate(sandbox.ID)
	Eventually(f.T, "a ping names the state", func() bool {
		result := Ping(f.T, p, sandbox, endpoints)
		if result.Status != provider.PingNotYet {
			f.Fatalf("%+v", result)
		}
		return unknown(result.Reason)
	})
	listed, err := p.(provider.Lister).List(f.Context(), provider.ListRequest{Owner: Owner, Session: "s1"})
	if err != nil || len(listed) != 1 || listed[0].State != provider.StateUnknown || !unknown(listed[0].Detail) {
		f.Errorf("listed: %+v, %v", listed, err)
	}
	if _, err := p.Attach(Within(f.T, 500*time.Millisecond), AttachRequest("s1")); err != nil && (provider.CodeOf(err) != provider.CodeTimeout || !unknown(err.Error())) {
		f.Errorf("Attach: %v", err)
	}
}

// unknown reports whether the text names the state that Hibernate makes, or says that it is unknown: an SDK may hide it.
func unknown(text string) bool {
	return strings.Contains(text, "hibernating") || strings.Contains(text, "does not know")
}

func testLoginPage(f *fixture) {
	p := f.start(Options{})
	sandbox, endpoints := Up(f.T, p, "s1")
	fault := f.Traffic.Fail(simcloud.Fault{Operation: f.cloud.Port, Status: http.StatusTemporaryRedirect, Headers: map[string]string{"Location": "/login"}})
	if result := Ping(f.T, p, sandbox, endpoints); result.Status != provider.PingDenied && result.Status != provider.PingNotYet {
		f.Errorf("%+v", result)
	}
	fault.Remove()
	AwaitAlive(f.T, p, sandbox, endpoints)
}
