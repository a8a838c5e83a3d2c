package main

import (
	"bytes"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/hashicorp/go-hclog"

	"github.com/berth-dev/berth/plugins/e2b/sim"
	"github.com/berth-dev/berth/plugins/internal/simcloud"
	"github.com/berth-dev/berth/shared/provider"
)

func TestTheAPIKeyIsNowhereButInItsHeader(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{})
	var logged locked
	config := configFor(cloud)
	p := newE2B(config, hclog.New(&hclog.LoggerOptions{Level: hclog.Trace, Output: &logged}), quick)
	defer p.Close()
	sandbox, endpoints := up(t, p, "s1")
	var said []string
	for _, fault := range []simcloud.Fault{
		{Status: 401, Body: fmt.Sprintf(`{"code":401,"message":"%s is not a key"}`, canary)}, {Status: 500, Body: canary}, {Drop: true},
		{Status: 302, Headers: map[string]string{"Location": "/login"}},
	} {
		injected := cloud.Traffic.Fail(fault)
		_, attachErr := p.Attach(t.Context(), attachRequest("s1"))
		_, startErr := p.StartServer(t.Context(), startRequest(sandbox, actionServer()))
		_, logsErr := p.Logs(t.Context(), provider.LogsRequest{SandboxRef: ref(sandbox), Lines: 3})
		said = append(said, fmt.Sprint(attachErr, startErr, logsErr, p.Suspend(t.Context(), ref(sandbox))), fmt.Sprint(ping(t, p, sandbox, endpoints)))
		injected.Remove()
	}
	if _, err := p.Renew(t.Context(), provider.RenewRequest{SandboxRef: ref(sandbox)}); err != nil {
		t.Error(err)
	}
	if logged.String() == "" {
		t.Error("nothing was logged")
	}
	for what, text := range map[string]string{
		"the log": logged.String(), "an error": strings.Join(said, "\n"), "an endpoint": fmt.Sprint(endpoints, sandbox),
		"the sandbox's processes": inside(t, cloud, sandbox.ID, "cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline; cat /tmp/.berth/*"),
	} {
		for _, secret := range []string{canary, canary[4:24]} {
			if strings.Contains(text, secret) {
				t.Errorf("the API key is in %s:\n%s", what, text)
			}
		}
	}
	tokens := endpoints.Server.Headers["e2b-traffic-access-token"]
	if strings.Contains(logged.String(), tokens) || strings.Contains(logged.String(), "session-secret") {
		t.Errorf("a token or the server's key is in the log:\n%s", logged.String())
	}
	for _, call := range cloud.Traffic.Calls() {
		toControl := slices.Contains(control, call.Operation)
		for name, values := range call.Headers {
			if strings.Contains(strings.Join(values, ""), canary) && (!toControl || name != "X-Api-Key") {
				t.Errorf("%s carries the API key in %s", call.Operation, name)
			}
		}
		if strings.Contains(call.Path+call.Body, canary) {
			t.Errorf("%s carries the API key in its path or body", call.Operation)
		}
	}
}

func TestAnInterruptedConnectRemovesItsSandboxAndItsProcessesNeverHeldTheKey(t *testing.T) {
	t.Parallel()
	if runtime.GOOS != "linux" {
		t.Skip("looks at processes through /proc")
	}
	cloud := newCloud(t, sim.Options{})
	// The server never becomes healthy: the probes meet an error page.
	cloud.Traffic.Fail(simcloud.Fault{Operation: "port", Status: 503, Body: "booting"})
	newMachine(t, cloud).InterruptConnect("the host probes", func() bool { return cloud.Traffic.Count("port") > 2 })
	if left := cloud.Sandboxes(); len(left) > 0 {
		t.Errorf("left: %+v", left)
	}
}

// locked is a buffer that several goroutines write to.
type locked struct {
	mutex  sync.Mutex
	buffer bytes.Buffer
}

func (l *locked) Write(p []byte) (int, error) {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	return l.buffer.Write(p)
}

func (l *locked) String() string {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	return l.buffer.String()
}
