package main

import (
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/berth-dev/berth/shared/provider"
)

// strangerOn lets a process that no sandbox has started listen on the port of an endpoint. It is healthy to everybody. It
// returns how many requests it was sent.
func strangerOn(t *testing.T, endpoint provider.Endpoint) *atomic.Int64 {
	t.Helper()
	listener, err := new(net.ListenConfig).Listen(t.Context(), "tcp", strings.TrimPrefix(endpoint.URL, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	asked := new(atomic.Int64)
	other := &httptest.Server{Listener: listener, Config: &http.Server{Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		asked.Add(1)
	})}}
	other.Start()
	t.Cleanup(other.Close)
	return asked
}

func onlyWhereTheSystemTells(t *testing.T) {
	t.Helper()
	if runtime.GOOS != "linux" {
		t.Skip("only Linux tells who listens")
	}
}

func TestAStrangerOnTheServersPortIsSentNoKey(t *testing.T) {
	t.Parallel()
	onlyWhereTheSystemTells(t)
	l := newLocal(t, Config{})
	sandbox := create(t, l, "s1")
	endpoints := start(t, l, sandbox, shell("sleep 1000"))
	asked := strangerOn(t, endpoints.Server)
	endpoints.Server.Headers = map[string]string{"X-Session-API-Key": "canary"}
	for range 2 { // no connection is kept either
		result := ping(t, l, sandbox, endpoints)
		if result.Status != provider.PingNotYet || !strings.Contains(result.Reason, "not the session's server but another process") {
			t.Errorf("ping: %+v", result)
		}
	}
	if asked.Load() != 0 {
		t.Errorf("the stranger was sent %d requests", asked.Load())
	}
}

func TestAStrangerWhoTakesOverThePortOfAServerThatEndedIsSentNoKey(t *testing.T) {
	t.Parallel()
	onlyWhereTheSystemTells(t)
	l := newLocal(t, Config{})
	sandbox := create(t, l, "s1")
	endpoints := start(t, l, sandbox, httpServer())
	eventually(t, "the server is healthy", func() bool { return ping(t, l, sandbox, endpoints).Status == provider.PingAlive })
	if response, err := http.Get(endpoints.Server.URL + "/exit"); err == nil {
		response.Body.Close()
	}
	eventually(t, "the server has ended", func() bool { return ping(t, l, sandbox, endpoints).Status == provider.PingExited })
	asked := strangerOn(t, endpoints.Server)
	if result := ping(t, l, sandbox, endpoints); result.Status != provider.PingExited || asked.Load() != 0 {
		t.Errorf("ping: %+v; the stranger was sent %d requests", result, asked.Load())
	}
}

func TestAListenerThatTheServerDetachedIsTheServers(t *testing.T) {
	t.Parallel()
	l := newLocal(t, Config{})
	sandbox := create(t, l, "s1")
	server := shell(`(env -i ` + part + `=server HOST=127.0.0.1 PORT=$PORT /usr/bin/setsid ` + os.Args[0] + ` >/dev/null 2>&1 &); exec sleep 1000`)
	endpoints := start(t, l, sandbox, server)
	eventually(t, "the server is healthy", func() bool { return ping(t, l, sandbox, endpoints).Status == provider.PingAlive })
}

func TestAnyListenerIsBelievedIfTheConfigurationSaysSo(t *testing.T) {
	t.Parallel()
	l := newLocal(t, Config{Listener: "any"})
	sandbox := create(t, l, "s1")
	endpoints := start(t, l, sandbox, shell("sleep 1000"))
	asked := strangerOn(t, endpoints.Server)
	if result := ping(t, l, sandbox, endpoints); result.Status != provider.PingAlive || asked.Load() != 1 {
		t.Errorf("ping: %+v; the listener was sent %d requests", result, asked.Load())
	}
}

func TestAServerThatListensOnIPv6OnlyIsTold(t *testing.T) {
	t.Parallel()
	onlyWhereTheSystemTells(t)
	if listener, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "[::1]:0"); err != nil {
		t.Skipf("there is no IPv6 here: %v", err)
	} else {
		listener.Close()
	}
	l := newLocal(t, Config{})
	sandbox := create(t, l, "s1")
	server := httpServer()
	server.Env["HOST"] = "::1"
	endpoints := start(t, l, sandbox, server)
	var result provider.PingResult
	eventually(t, "the server listens", func() bool {
		result = ping(t, l, sandbox, endpoints)
		return !strings.Contains(result.Reason, "nothing listens")
	})
	_, port, _ := strings.Cut(strings.TrimPrefix(endpoints.Server.URL, "http://"), ":")
	if _, err := strconv.Atoi(port); err != nil {
		t.Fatal(err)
	}
	if want := "listens on ::1 only"; result.Status != provider.PingNotYet || !strings.Contains(result.Reason, want) || !strings.Contains(result.Reason, port) {
		t.Errorf("ping: %+v, want %q", result, want)
	}
}

func TestWhoeverAttachesLearnsHowTheServerEnded(t *testing.T) {
	t.Parallel()
	l := newLocal(t, Config{})
	sandbox := create(t, l, "s1")
	endsAtOnce(t, l, sandbox, shell("echo last words; kill -9 $$"))
	attached := attach(t, l)
	if attached.Endpoints == nil {
		t.Fatal("no endpoints: nobody could ask")
	}
	result := ping(t, l, attached, *attached.Endpoints)
	if result.Status != provider.PingExited || result.ExitCode == nil || *result.ExitCode != 137 || !slices.Contains(result.LogTail, "last words") {
		t.Errorf("ping: %+v", result)
	}
}
