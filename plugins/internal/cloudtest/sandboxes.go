package cloudtest

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-dev/berth/plugins/internal/simcloud"
	"github.com/berth-dev/berth/shared/provider"
)

func testLifecycle(f *fixture) {
	p := f.start(Options{Create: 20 * time.Millisecond, Change: 20 * time.Millisecond})
	created, endpoints := Up(f.T, p, "s1")
	if created.Origin != provider.OriginCreated || created.State != provider.StateRunning || created.Attempt != "attempt-of-s1" {
		f.Errorf("created: %+v", created)
	}
	if diff := cmp.Diff(CreateRequest("s1").AllLabels(), created.Labels); diff != "" {
		f.Errorf("labels (-want +got):\n%s", diff)
	}
	if life := time.Until(created.ExpiresAt); life < 50*time.Minute || life > 70*time.Minute {
		f.Errorf("it lives for %s, not for the hour that was asked for", life)
	}

	other := f.open(Brisk)
	attached := Attach(f.T, other, "s1")
	if attached.ID != created.ID || attached.Origin != provider.OriginAttached || attached.Endpoints == nil {
		f.Fatalf("attached: %+v", attached)
	}
	AwaitAlive(f.T, other, attached, *attached.Endpoints)
	if again := Start(f.T, other, attached, ActionServer()); again.Server.URL != endpoints.Server.URL {
		f.Errorf("started again at %s, not %s", again.Server.URL, endpoints.Server.URL)
	}
	request := CreateRequest("s1")
	request.Attempt = "another"
	if again, err := f.open(Brisk).Create(f.Context(), request); err != nil || again.ID != created.ID || again.Origin != provider.OriginAttached || again.Attempt != created.Attempt {
		f.Errorf("created again: %+v, %v, want %s adopted", again, err, created.ID)
	}

	if suspender, can := p.(provider.Suspender); can {
		f.suspendAndWake(p, suspender, created, endpoints)
	}

	for range 2 {
		if err := p.(provider.Destroyer).Destroy(f.Context(), Ref(created)); err != nil {
			f.Fatal(err)
		}
	}
	f.left(0)
	f.wantCode(Err(p.Attach(f.Context(), AttachRequest("s1"))), provider.CodeNotFound)
	request.Attempt = "the next"
	if next, err := p.Create(f.Context(), request); err != nil || next.ID == created.ID || next.Origin != provider.OriginCreated {
		f.Errorf("after destroy: %+v, %v", next, err)
	}
}

func (f *fixture) suspendAndWake(p provider.Provider, suspender provider.Suspender, sandbox provider.Sandbox, endpoints provider.Endpoints) {
	f.Helper()
	other := f.open(Brisk)
	for _, s := range []provider.Suspender{suspender, other.(provider.Suspender)} {
		if err := s.Suspend(f.Context(), Ref(sandbox)); err != nil {
			f.Fatalf("Suspend: %v", err)
		}
	}
	listed, err := p.(provider.Lister).List(f.Context(), provider.ListRequest{Owner: Owner, Session: "s1"})
	if err != nil || len(listed) != 1 || listed[0].State != provider.StateSuspended || listed[0].Attempt != sandbox.Attempt {
		f.Errorf("listed: %+v, %v", listed, err)
	}
	for _, one := range []provider.Provider{p, other} { // p knew it running
		f.wantCode(Err(one.StartServer(f.Context(), StartRequest(sandbox, ActionServer()))), provider.CodeState)
		logs := provider.LogsRequest{SandboxRef: Ref(sandbox), Lines: 2}
		f.wantCode(Err(one.(provider.LogReader).Logs(f.Context(), logs)), provider.CodeState)
	}
	if result := AwaitPing(f.T, p, sandbox, endpoints); result.Status != provider.PingStopped {
		f.Errorf("ping: %+v", result)
	}
	if there := f.Sandboxes(); len(there) != 1 || !there[0].Suspended {
		f.Errorf("something woke it: %+v", there)
	}
	woken := Attach(f.T, f.open(Brisk), "s1")
	if woken.ID != sandbox.ID || woken.Origin != provider.OriginWoken || woken.State != provider.StateRunning {
		f.Errorf("woken: %+v", woken)
	}
	AwaitAlive(f.T, p, woken, Start(f.T, p, woken, ActionServer()))
	if n := f.servers(sandbox.ID); n != 1 {
		f.Errorf("%d servers run", n)
	}
	f.Suspend(sandbox.ID)
	if again, err := p.Create(f.Context(), CreateRequest("s1")); err != nil || again.ID != sandbox.ID || again.Origin != provider.OriginWoken {
		f.Errorf("created again: %+v, %v, want it woken", again, err)
	}
}

func testCancelledCreate(f *fixture) {
	p := f.start(Options{Create: 300 * time.Millisecond}) // the cloud goes on
	ctx, cancel := context.WithCancel(f.Context())
	var watch sync.WaitGroup
	watch.Go(func() {
		Eventually(f.T, "the sandbox is being made", func() bool { return f.Traffic.Count(f.cloud.Create) > 0 })
		cancel()
	})
	_, err := p.Create(ctx, CreateRequest("s1"))
	watch.Wait()
	if e := WantCode(f.T, err, provider.CodeCanceled); e.SandboxID != "" {
		f.Errorf("%s is left", e.SandboxID)
	}
	f.left(0)
}

func testManyCreates(f *fixture) {
	f.start(Options{Create: 30 * time.Millisecond, Lag: 50 * time.Millisecond})
	// All have looked and found nothing by the time the first one is made.
	f.inject(simcloud.Fault{Operation: f.cloud.Create, Delay: 300 * time.Millisecond})
	const many = 6
	var creates sync.WaitGroup
	var made [many]provider.Sandbox
	for i := range many {
		p := f.open(Brisk)
		creates.Go(func() {
			request := CreateRequest("s1")
			request.Attempt = fmt.Sprint("attempt-", i)
			var err error
			if made[i], err = p.Create(f.Context(), request); err != nil {
				f.Errorf("create %d: %v", i, err)
			}
			if (made[i].Origin == provider.OriginCreated) != (made[i].Attempt == request.Attempt) {
				f.Errorf("attempt %q: %s of %q", request.Attempt, made[i].Origin, made[i].Attempt)
			}
		})
	}
	creates.Wait()
	there := f.Sandboxes()
	if len(there) != 1 || slices.ContainsFunc(made[:], func(s provider.Sandbox) bool { return s.ID != there[0].ID }) {
		f.Errorf("%+v, and there are %+v", made, there)
	}
	if n := f.Traffic.Count(f.cloud.Create); n < 2 {
		f.Errorf("%d creates: there was no race", n)
	}
}

func testLostAnswer(f *fixture) {
	p := f.start(Options{})
	f.inject(simcloud.Fault{Operation: f.cloud.Create, Count: 1, Drop: true, After: true})
	if sandbox := Create(f.T, p, "s1"); sandbox.Origin != provider.OriginCreated {
		f.Errorf("%+v", sandbox)
	}
	f.left(1)
}

// refusals are the calls that a plugin refuses on a sandbox that is not the owner's, each in a process of its own.
func (f *fixture) refusals(sandbox provider.Sandbox) map[string]error {
	ctx, ref := f.Context(), provider.SandboxRef{Owner: Owner, SandboxID: sandbox.ID}
	attach := AttachRequest("s1")
	attach.SandboxID = sandbox.ID
	calls := map[string]error{
		"Attach":      Err(f.open(Brisk).Attach(ctx, attach)),
		"StartServer": Err(f.open(Brisk).StartServer(ctx, StartRequest(sandbox, ActionServer()))),
		"Destroy":     f.open(Brisk).(provider.Destroyer).Destroy(ctx, ref),
		"Logs":        Err(f.open(Brisk).(provider.LogReader).Logs(ctx, provider.LogsRequest{SandboxRef: ref, Lines: 1})),
	}
	if p, can := f.open(Brisk).(provider.Suspender); can {
		calls["Suspend"] = p.Suspend(ctx, ref)
	}
	if p, can := f.open(Brisk).(provider.Renewer); can {
		calls["Renew"] = Err(p.Renew(ctx, provider.RenewRequest{SandboxRef: ref, Lifetime: time.Hour}))
	}
	return calls
}

func testStranger(f *fixture) {
	p := f.start(Options{})
	sandbox := Create(f.T, p, "s1")
	f.Label(sandbox.ID, map[string]string{provider.LabelOwner: stranger})
	for call, err := range f.refusals(sandbox) {
		if provider.CodeOf(err) != provider.CodeConflict {
			f.Errorf("%s: %v", call, err)
		}
	}
	_, err := f.open(Brisk).Attach(f.Context(), AttachRequest("s1"))
	request := CreateRequest("s1")
	request.Attempt = "another" // a cloud may recognise the attempt that made the first one
	made, createErr := f.open(Brisk).Create(f.Context(), request)
	if f.cloud.Nameless {
		f.wantCode(err, provider.CodeNotFound)
		if createErr != nil || made.ID == sandbox.ID || made.Origin != provider.OriginCreated {
			f.Errorf("Create: %+v, %v", made, createErr)
		}
		return
	}
	f.wantCode(err, provider.CodeConflict)
	f.wantCode(createErr, provider.CodeConflict)
	if there := f.Sandboxes(); len(there) != 1 || there[0].Suspended {
		f.Errorf("%+v", there)
	}
}

func testAttachByID(f *fixture) {
	sandbox := Create(f.T, f.start(Options{}), "s1")
	for _, test := range []struct{ session, owner string }{{"s1", Owner}, {"s2", Owner}, {"s1", stranger}} {
		request := AttachRequest(test.session)
		request.Owner, request.SandboxID = test.owner, sandbox.ID
		found, err := f.open(Brisk).Attach(f.Context(), request)
		if code := provider.CodeOf(err); test.session == "s1" && test.owner == Owner {
			if err != nil || found.ID != sandbox.ID || found.Origin != provider.OriginAttached {
				f.Errorf("%+v, %v", found, err)
			}
		} else if code != provider.CodeConflict && code != provider.CodeNotFound { // not found where the cloud looks by name
			f.Errorf("session %s, owner %s: %+v, %v", test.session, test.owner, found, err)
		}
	}
}

func testGone(f *fixture) {
	p := f.start(Options{})
	sandbox, endpoints := Up(f.T, p, "s1")
	f.End(sandbox.ID)
	for call, err := range f.refusals(sandbox) {
		if call == "Destroy" {
			if err != nil {
				f.Errorf("Destroy: %v", err)
			}
			continue
		}
		e := provider.AsError(err)
		switch {
		case call == "Logs" && provider.CodeOf(err) == provider.CodeState: // where what has ended can still be seen
		case e == nil || e.Code != provider.CodeNotFound || e.Reason != provider.ReasonGone && call == "Attach":
			f.Errorf("%s: %+v", call, e)
		}
	}
	f.wantCode(Err(p.StartServer(f.Context(), StartRequest(sandbox, ActionServer()))), provider.CodeNotFound) // which knew it running
	if result := AwaitPing(f.T, p, sandbox, endpoints); result.Status != provider.PingGone {
		f.Errorf("ping: %+v", result)
	}
}

func testLifetime(f *fixture) {
	p := f.start(Options{Minute: time.Second})
	request := CreateRequest("s1")
	request.Lifetime = 4 * time.Second // more than creating it takes on a busy machine
	if _, err := p.Create(f.Context(), request); err != nil {
		f.Fatal(err)
	}
	Eventually(f.T, "it has ended", func() bool {
		there := f.Sandboxes()
		return len(there) == 0 || there[0].Suspended
	})
}

func testPages(f *fixture) {
	p := f.start(Options{})
	const many = 250
	for owner, count := range map[string]int{Owner: many, stranger: 30} {
		if err := f.Plant(count, map[string]string{provider.LabelOwner: owner, provider.LabelSession: "x", provider.LabelAttempt: "a"}); err != nil {
			f.Fatal(err)
		}
	}
	listed, err := p.(provider.Lister).List(f.Context(), provider.ListRequest{Owner: Owner})
	if err != nil {
		f.Fatal(err)
	}
	different := map[string]bool{}
	for _, sandbox := range listed {
		different[sandbox.ID] = true
		if sandbox.Owner != Owner || sandbox.State != provider.StateRunning || sandbox.CreatedAt.IsZero() {
			f.Fatalf("%+v", sandbox)
		}
	}
	if pages := f.Traffic.Count(f.cloud.List); len(listed) != many || len(different) != many || pages < 2 {
		f.Errorf("%d sandboxes, %d different, in %d pages", len(listed), len(different), pages)
	}
	if n := f.Traffic.Count(); n > 8 {
		f.Errorf("%d calls", n)
	}
}

func testOwners(f *fixture) {
	p := f.start(Options{})
	for _, labels := range []map[string]string{
		{provider.LabelOwner: Owner, provider.LabelSession: "s1", provider.LabelAttempt: "a1"},
		{provider.LabelOwner: stranger, provider.LabelSession: "s1", provider.LabelAttempt: "a2"},
		{"made-by": "hand"},
	} {
		if err := f.Plant(1, labels); err != nil {
			f.Fatal(err)
		}
	}
	for _, look := range []struct {
		request provider.ListRequest
		want    []string
	}{
		{provider.ListRequest{Owner: Owner}, []string{Owner}},
		{provider.ListRequest{Owner: Owner, AllOwners: true}, []string{stranger, Owner}},
		{provider.ListRequest{Owner: Owner, AllOwners: true, Session: "s1"}, []string{stranger, Owner}},
		{provider.ListRequest{Owner: Owner, AllOwners: true, Session: "s2"}, nil},
	} {
		sandboxes, err := p.(provider.Lister).List(f.Context(), look.request)
		var owners []string
		for _, s := range sandboxes {
			owners = append(owners, s.Owner)
			if s.ID == "" || s.Session != "s1" || s.Attempt == "" || s.CreatedAt.IsZero() {
				f.Errorf("%+v", s)
			}
		}
		slices.Sort(owners)
		if err != nil || !slices.Equal(owners, look.want) {
			f.Errorf("%+v shows those of %q, %v", look.request, owners, err)
		}
	}
}

func testRenew(f *fixture) {
	p := f.start(Options{})
	renewer, can := p.(provider.Renewer)
	if !can {
		f.Skip("it cannot")
	}
	sandbox := Create(f.T, p, "s1")
	end, err := renewer.Renew(f.Context(), provider.RenewRequest{SandboxRef: Ref(sandbox), Lifetime: 90 * time.Minute})
	if err != nil || end.Before(sandbox.ExpiresAt) || time.Until(end) > 91*time.Minute {
		f.Errorf("renewed until %s instead of %s, %v", end, sandbox.ExpiresAt, err)
	}
	listed, err := p.(provider.Lister).List(f.Context(), provider.ListRequest{Owner: Owner, Session: "s1"})
	if err != nil || len(listed) != 1 || listed[0].ExpiresAt.Sub(end).Abs() > time.Minute {
		f.Fatalf("renewed until %s, listed %+v, %v", end, listed, err)
	}
	if diff := cmp.Diff(sandbox.Labels, listed[0].Labels); diff != "" {
		f.Errorf("renewing changed labels (-before +after):\n%s", diff)
	}
}
