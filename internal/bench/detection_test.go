package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/berth-dev/berth/host/connect"
	"github.com/berth-dev/berth/host/sessions"
	"github.com/berth-dev/berth/internal/testbin"
)

// boots are the times that servers take until they are ready.
var boots = []time.Duration{
	0, 30 * time.Millisecond, 100 * time.Millisecond, 300 * time.Millisecond, time.Second, 5 * time.Second,
}

const (
	// spread is how far their boot times differ from it, so that they become ready at all points between two probes.
	spread = 0.2
	// crowded is the boot time from which on they boot at the same time, a moment apart: they are probed rarely then.
	crowded = time.Second
	apart   = 20 * time.Millisecond
)

// bootTimes spreads n boot times evenly around one.
func bootTimes(boot time.Duration, n int) []time.Duration {
	var times []time.Duration
	for i := range n {
		offset := spread * (2*(float64(i)+0.5)/float64(n) - 1)
		times = append(times, boot+time.Duration(offset*float64(boot)))
	}
	return times
}

// BenchmarkDetection is how much later a connect returns than its server was ready, for servers of different boot
// times. In "mock" they are HTTP servers inside the plugin, which know to the microsecond when they are ready: that is
// the pace of the host's probes, with the ramp and without. In "local" they are processes, which the keeper of their
// sandbox starts and which write down when they began to listen.
func BenchmarkDetection(b *testing.B) {
	b.Run("mock", func(b *testing.B) { detect(b, mockServers, connect.RampAuto) })
	b.Run("local", func(b *testing.B) { detect(b, localServers, connect.RampAuto) })
	b.Run("mock-without-ramp", func(b *testing.B) { detect(b, mockServers, connect.RampOff) })
}

// starter prepares servers with these boot times. What it returns connects to one of them and says how much later than
// the server was ready it knew.
type starter func(b *testing.B, times []time.Duration) func(i int, health connect.Health) (late time.Duration, err error)

func detect(b *testing.B, start starter, ramp connect.Ramp) {
	b.ReportMetric(0, "ns/op")
	servers := size(10, 2) // of each boot time
	worst := time.Duration(0)
	for _, boot := range boots {
		connectTo := start(b, bootTimes(boot, servers))
		lates := make(figures, servers)
		failures := make([]error, servers)
		var callers sync.WaitGroup
		for i := range servers {
			callers.Go(func() { lates[i], failures[i] = connectTo(i, connect.Health{Ramp: ramp}) })
			if boot < crowded && ramp == connect.RampAuto {
				callers.Wait()
			} else {
				pass(apart)
			}
		}
		callers.Wait()
		for i, err := range failures {
			if err != nil {
				b.Fatalf("server %d that boots in %s: %v", i, boot, err)
			}
		}
		worst = max(worst, lates.max())
		b.ReportMetric(ms(lates.mean()), fmt.Sprintf("late-after-%dms", boot.Milliseconds()))
		aim := fmt.Sprintf(" (aim: %.0f)", ms(boot/10+15*time.Millisecond))
		if ramp == connect.RampOff {
			aim = ""
		}
		b.Logf("boot %5s: late by %5.1f ms on average%s, %5.1f ms at most", boot, ms(lates.mean()), aim, ms(lates.max()))
	}
	b.ReportMetric(ms(worst), "worst-late-ms")
}

// mockServers has a plugin for each boot time, because that is part of the configuration.
func mockServers(b *testing.B, times []time.Duration) func(int, connect.Health) (time.Duration, error) {
	b.Helper()
	mock := testbin.Build(b, "./plugins/mock")
	var hosts []*host
	for _, boot := range times {
		settings := fmt.Sprintf(`{"serve":"http","ready_after":%q}`, boot)
		hosts = append(hosts, newHost(b, mock, settings, false, inMemory))
	}
	return func(i int, health connect.Health) (time.Duration, error) {
		// The server starts when StartServer is called, so that is a little too early for the instant it was ready:
		// the lateness holds one call too much.
		var ready time.Time
		note := func(e connect.Event) {
			if e.Phase == connect.PhaseStartServer && e.Status == connect.StatusStarted {
				ready = e.Time.Add(times[i])
			}
		}
		asked := request("session")
		asked.Health = health
		_, err := hosts[i].connect(context.Background(), asked, note)
		return time.Since(ready), err
	}
}

// localServers are processes of this test binary.
func localServers(b *testing.B, times []time.Duration) func(int, connect.Health) (time.Duration, error) {
	b.Helper()
	executable, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	settings, err := json.Marshal(map[string]string{"root": filepath.Join(b.TempDir(), "root")})
	if err != nil {
		b.Fatal(err)
	}
	h := newHost(b, testbin.Build(b, "./plugins/local"), string(settings), false, inMemory)
	b.Cleanup(func() { h.leaveNothing(b) })
	return func(i int, health connect.Health) (time.Duration, error) {
		ctx := context.Background()
		asked := request(fmt.Sprintf("session-%d", i))
		asked.Health = health
		asked.Server.Command = []string{executable}
		asked.Server.Env = map[string]string{roleVariable: roleServer, bootVariable: times[i].String()}
		result, err := h.connect(ctx, asked, nil)
		now := time.Now()
		if err != nil {
			return 0, err
		}
		ready, err := readySince(result.Endpoint.URL)
		if err != nil {
			return 0, err
		}
		return now.Sub(ready), h.disconnect(ctx, asked.Session, sessions.ActionDestroy)
	}
}

// leaveNothing ends what a failed run left. There is nothing otherwise.
func (h *host) leaveNothing(b *testing.B) {
	b.Helper()
	left, _, err := h.fleet.Sessions(context.Background(), label)
	if err != nil {
		b.Error(err)
	}
	for _, s := range left {
		b.Errorf("sandbox %s of session %s is left", s.SandboxID, s.Session)
		if err := h.disconnect(context.Background(), s.Session, sessions.ActionDestroy); err != nil {
			b.Error(err)
		}
	}
}

// bootVariable tells a server how long it boots.
const bootVariable = "BERTH_BENCH_BOOT"

// beServer is a server that takes its time until it listens. Its answer says since when it does.
func beServer() {
	boot, err := time.ParseDuration(os.Getenv(bootVariable))
	if err != nil {
		panic(err)
	}
	pass(boot)
	listener, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", os.Getenv("PORT")))
	if err != nil {
		panic(err)
	}
	since := time.Now()
	panic(http.Serve(listener, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		json.NewEncoder(w).Encode(alive{Status: "ok", Since: strconv.FormatInt(since.UnixNano(), 10)})
	})))
}

// alive is what the server answers.
type alive struct {
	Status string `json:"status"`
	Since  string `json:"since"` // in nanoseconds of Unix time
}

// readySince asks a server since when it listens.
func readySince(url string) (time.Time, error) {
	defer http.DefaultClient.CloseIdleConnections()
	response, err := http.Get(url + "/alive")
	if err != nil {
		return time.Time{}, err
	}
	defer response.Body.Close()
	var answer alive
	if err := json.NewDecoder(response.Body).Decode(&answer); err != nil {
		return time.Time{}, err
	}
	nanoseconds, err := strconv.ParseInt(answer.Since, 10, 64)
	return time.Unix(0, nanoseconds), err
}
