package main

import (
	"testing"
	"time"

	"github.com/berth-dev/berth/plugins/modal/sim"
	"github.com/berth-dev/berth/shared/provider"
)

func TestASessionKeepsItsSandboxUntilItIsDestroyed(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{Create: 20 * time.Millisecond, Build: 20 * time.Millisecond})
	d := newProvider(t, cloud, nil)

	created := create(t, d, "s1")
	if created.Origin != provider.OriginCreated || created.State != provider.StateRunning {
		t.Errorf("created: origin %s, state %s", created.Origin, created.State)
	}
	endpoints := start(t, d, created, pythonServer())
	awaitAlive(t, d, created, endpoints)
	attached := attach(t, d, "s1")
	if attached.ID != created.ID || attached.Origin != provider.OriginAttached || attached.Endpoints == nil {
		t.Fatalf("attached: %+v", attached)
	}
	if result := ping(t, d, attached, *attached.Endpoints); result.Status != provider.PingAlive {
		t.Errorf("attached: %+v", result)
	}
	if again := create(t, d, "s1"); again.ID != created.ID || again.Origin != provider.OriginAttached {
		t.Errorf("created again: %s (%s), want %s adopted", again.ID, again.Origin, created.ID)
	}

	for range 2 {
		if err := d.Destroy(t.Context(), ref(created)); err != nil {
			t.Fatal(err)
		}
	}
	if left := cloud.Sandboxes(); len(left) != 0 {
		t.Errorf("left: %+v", left)
	}
	if _, err := d.Attach(t.Context(), attachRequest("s1")); provider.CodeOf(err) != provider.CodeNotFound {
		t.Errorf("attached to nothing: %v", err)
	}
	if next := create(t, d, "s1"); next.ID == created.ID || next.Origin != provider.OriginCreated {
		t.Errorf("after destroy: %s (%s)", next.ID, next.Origin)
	}
}
