package main

import (
	"testing"
	"time"

	"github.com/berth-dev/berth/plugins/runloop/sim"
	"github.com/berth-dev/berth/shared/provider"
)

func TestASandboxLivesThroughEverythingAHostDoesWithIt(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{
		Provision: 50 * time.Millisecond, Suspend: 50 * time.Millisecond, Resume: 50 * time.Millisecond, LazyStatus: 20 * time.Millisecond,
	})
	r := newRunloop(t, cloud, nil)
	created := create(t, r, "s1")
	if created.Origin != provider.OriginCreated || created.State != provider.StateRunning || created.Session != "s1" ||
		created.Attempt != "attempt-of-s1" || created.Labels["team"] != "blue" || time.Until(created.ExpiresAt) < 50*time.Minute {
		t.Errorf("created %+v", created)
	}
	endpoints := start(t, r, created, actionServer())
	pingUntil(t, r, created, endpoints, "the server is alive", alive)

	other := newRunloop(t, cloud, nil) // another process
	attached := attach(t, other)
	if attached.ID != created.ID || attached.Origin != provider.OriginAttached || attached.Endpoints == nil {
		t.Fatalf("attached %+v", attached)
	}
	if result := ping(t, other, attached, *attached.Endpoints); !alive(result) {
		t.Errorf("ping: %+v", result)
	}
	if again := start(t, other, attached, actionServer()); again.Server.URL != endpoints.Server.URL {
		t.Errorf("started again at %s, not %s", again.Server.URL, endpoints.Server.URL)
	}
	if lines, err := other.Logs(t.Context(), provider.LogsRequest{SandboxRef: ref(attached), Lines: 5}); err != nil || len(lines) == 0 {
		t.Errorf("logs %q, %v", lines, err)
	}

	if err := other.Suspend(t.Context(), ref(attached)); err != nil {
		t.Fatal(err)
	}
	if err := r.Suspend(t.Context(), ref(attached)); err != nil {
		t.Errorf("suspending again: %v", err)
	}
	pingUntil(t, r, created, endpoints, "a ping sees that it is suspended", func(result provider.PingResult) bool {
		return result.Status == provider.PingStopped
	})
	woken := attach(t, r)
	if woken.ID != created.ID || woken.Origin != provider.OriginWoken {
		t.Errorf("woken %+v", woken)
	}
	endpoints = start(t, r, woken, actionServer())
	pingUntil(t, r, woken, endpoints, "the server is alive again", alive)

	for range 2 {
		if err := r.Destroy(t.Context(), ref(woken)); err != nil {
			t.Fatal(err)
		}
	}
	if live := cloud.Live(); len(live) != 0 {
		t.Errorf("left: %+v", live)
	}
	_, err := r.Attach(t.Context(), provider.AttachRequest{Session: "s1", Owner: owner})
	if provider.CodeOf(err) != provider.CodeNotFound {
		t.Errorf("attached to nothing: %v", err)
	}
}
