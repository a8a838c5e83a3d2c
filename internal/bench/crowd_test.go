package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/berth-dev/berth/host/connect"
	"github.com/berth-dev/berth/host/fleet"
	"github.com/berth-dev/berth/internal/testbin"
	"github.com/berth-dev/berth/shared/provider"
)

// The variables that tell a host process where the mock plugin is, and how many sessions to connect.
const (
	mockVariable  = "BERTH_BENCH_MOCK"
	crowdVariable = "BERTH_BENCH_CROWD"
)

// runHost has a process of its own do the work of a role, and reads its answer.
func runHost(b *testing.B, role string, sessions int, answer any) {
	b.Helper()
	executable, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	defer cancel()
	command := exec.CommandContext(ctx, executable)
	command.Env = append(os.Environ(), roleVariable+"="+role,
		mockVariable+"="+testbin.Build(b, "./plugins/mock"), crowdVariable+"="+strconv.Itoa(sessions))
	command.Stderr = os.Stderr
	stdout, err := command.Output()
	if err == nil {
		err = json.Unmarshal(stdout, answer)
	}
	if err != nil {
		b.Fatalf("the host process: %v\n%s", err, stdout)
	}
}

// beHost does the work of a role, in the process that runHost started.
func beHost(work func(mock string, sessions int) (any, error)) {
	var answer any
	sessions, err := strconv.Atoi(os.Getenv(crowdVariable))
	if err == nil {
		answer, err = work(os.Getenv(mockVariable), sessions)
	}
	if err == nil {
		err = goleak.Find()
	}
	if err == nil {
		err = json.NewEncoder(os.Stdout).Encode(answer)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

const (
	crowdRounds = 3
	slowCloud   = `{"serve":"none","create_latency":"2s"}`
)

// crowdAnswer is what a host process with a crowd measured.
type crowdAnswer struct {
	One                               time.Duration // one connect
	All                               figures       // all connects of a round, from the first to the last
	Bare                              figures       // the same with bare go-plugin
	SQLite                            figures       // the same with records in SQLite
	CPU                               time.Duration // of the host, for one of a thousand connects and destroying it again
	GoroutinesBefore, GoroutinesAfter int
	PeakMB                            float64
}

// BenchmarkThousandConnects connects 1,000 sessions at once through one connector and one plugin, on a cloud that takes
// two seconds for each, next to one connect alone. Everything but those two seconds is work, for host and plugin, and
// comes in two waves: at the start and when all sandboxes are made. A busy machine has no time for the waves, so the
// same calls are made with bare go-plugin as well. Their memory is in the peak too.
func BenchmarkThousandConnects(b *testing.B) {
	var a crowdAnswer
	crowd := size(1000, 50)
	runHost(b, roleCrowd, crowd, &a)
	report(b, map[string]float64{
		"ratio-to-one": ratio(a.All.median(), a.One), "bare-ratio-to-one": ratio(a.Bare.median(), a.One),
		"sqlite-ratio-to-one": ratio(a.SQLite.median(), a.One),
		"one-ms":              ms(a.One), "all-ms": ms(a.All.median()), "all-worst-ms": ms(a.All.max()), "host-cpu-ms-each": ms(a.CPU),
		"goroutines-before": float64(a.GoroutinesBefore), "goroutines-after": float64(a.GoroutinesAfter),
	})
	if a.PeakMB > 0 {
		b.ReportMetric(a.PeakMB, "peak-MB")
	}
	b.Logf("%d connects, median of %d rounds; aim: ratio-to-one and sqlite-ratio-to-one < 1.25, peak-MB < 150, no goroutine more after "+
		"than before", crowd, crowdRounds)
}

func beCrowd(mock string, crowd int) (any, error) {
	h, err := startHost(mock, slowCloud, true, inMemory)
	if err != nil {
		return nil, err
	}
	defer h.close()
	giveBack, err := lendStdin()
	if err != nil {
		return nil, err
	}
	defer giveBack()
	bare, err := startBare(mock, slowCloud, true)
	if err != nil {
		return nil, err
	}
	defer bare.process.Kill()

	var a crowdAnswer
	if _, err := connectAll(h, "warm-up", 10); err != nil {
		return nil, err
	}
	if a.One, err = connectAll(h, "one", 1); err != nil {
		return nil, err
	}
	a.GoroutinesBefore = runtime.NumGoroutine()
	for i := range crowdRounds {
		name := fmt.Sprintf("round-%d", i)
		cpuBefore := cpuTime()
		all, err := connectAll(h, name, crowd)
		if err != nil {
			return nil, err
		}
		a.All = append(a.All, all)
		a.CPU += (cpuTime() - cpuBefore) / time.Duration(crowd*crowdRounds)
		if all, err = connectAllBare(bare, name, crowd); err != nil {
			return nil, err
		}
		a.Bare = append(a.Bare, all)
	}
	a.PeakMB = memory(os.Getpid(), "VmHWM")
	if a.SQLite, err = connectAllRecorded(mock, crowd); err != nil {
		return nil, err
	}
	back := eventually(func() bool {
		a.GoroutinesAfter = runtime.NumGoroutine()
		return a.GoroutinesAfter <= a.GoroutinesBefore
	})
	if !back {
		return nil, fmt.Errorf("%d goroutines before, %d after", a.GoroutinesBefore, a.GoroutinesAfter)
	}
	return a, nil
}

// connectAllRecorded is connectAll with records in SQLite, which has one writer at a time and forces each write to the
// disk.
func connectAllRecorded(mock string, crowd int) (rounds figures, err error) {
	h, err := startHost(mock, slowCloud, true, fleet.Options{})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, h.close()) }()
	for i := range crowdRounds {
		took, err := connectAll(h, fmt.Sprintf("recorded-%d", i), crowd)
		if err != nil {
			return nil, err
		}
		rounds = append(rounds, took)
	}
	return rounds, nil
}

// connectAll connects n new sessions at the same time, and says how long it took until the last one was connected.
// Their sandboxes are destroyed afterwards.
func connectAll(h *host, name string, n int) (time.Duration, error) {
	ctx := context.Background()
	results := make([]connect.Result, n)
	failures := make([]error, n)
	var callers sync.WaitGroup
	start := make(chan struct{})
	for i := range n {
		callers.Go(func() {
			<-start
			results[i], failures[i] = h.connect(ctx, request(fmt.Sprintf("%s-%d", name, i)), nil)
		})
	}
	began := time.Now()
	close(start)
	callers.Wait()
	took := time.Since(began)

	if err := errors.Join(failures...); err != nil {
		return took, err
	}
	different := map[string]bool{}
	for _, result := range results {
		if result.Origin != provider.OriginCreated {
			return took, fmt.Errorf("session %s was %s", result.Session, result.Origin)
		}
		different[result.SandboxID] = true
		if err := h.plugin.Destroy(ctx, provider.SandboxRef{Owner: owner, SandboxID: result.SandboxID}); err != nil {
			return took, err
		}
	}
	if len(different) != n {
		return took, fmt.Errorf("%d sessions got %d sandboxes", n, len(different))
	}
	return took, h.nothingLeft()
}

// connectAllBare is connectAll with bare go-plugin.
func connectAllBare(bare *bare, name string, n int) (time.Duration, error) {
	ctx := context.Background()
	ids := make([]string, n)
	failures := make([]error, n)
	var callers sync.WaitGroup
	start := make(chan struct{})
	for i := range n {
		callers.Go(func() {
			<-start
			ids[i], failures[i] = bare.connect(ctx, fmt.Sprintf("%s-%d", name, i))
		})
	}
	began := time.Now()
	close(start)
	callers.Wait()
	took := time.Since(began)
	for _, id := range ids {
		failures = append(failures, bare.destroy(ctx, id))
	}
	return took, errors.Join(failures...)
}

const (
	// warmUp is how long after the last session began to wait the pace is down to one probe a second.
	warmUp = 11 * time.Second
	// measured is how long the waiting is watched then.
	measured = 6 * time.Second
)

// waitingAnswer is what a host process with waiting sessions measured.
type waitingAnswer struct {
	Started        time.Duration // until all sessions waited
	Cores          float64       // of the host process, while they waited
	Probes         float64       // a second
	Undone         time.Duration // from the cancel until all sandboxes were destroyed
	RestMB, PeakMB float64
}

// BenchmarkTenThousandWaiting has 10,000 sessions wait for servers that do not become healthy, and measures what the
// host needs for that once each of them is due to be probed once a second. A machine too busy for 10,000 probes a second
// makes cores look good; us-per-probe, the processor time for each, does not depend on that.
func BenchmarkTenThousandWaiting(b *testing.B) {
	var a waitingAnswer
	waiters := size(10_000, 200)
	runHost(b, roleWaiting, waiters, &a)
	report(b, map[string]float64{
		"cores": a.Cores, "probes/s": a.Probes, "us-per-probe": a.Cores / a.Probes * 1e6,
		"start-s": a.Started.Seconds(), "undo-s": a.Undone.Seconds(),
	})
	if a.PeakMB > 0 {
		b.ReportMetric(a.RestMB, "waiting-MB")
		b.ReportMetric(a.PeakMB, "peak-MB")
	}
	b.Logf("%d sessions, from %s after they began to wait; aim: cores < 1 (us-per-probe < 100), peak-MB < 500", waiters, warmUp)
}

func beWaiting(mock string, waiters int) (any, error) {
	h, err := startHost(mock, `{"serve":"none","ready_after":"1h"}`, true, inMemory)
	if err != nil {
		return nil, err
	}
	defer h.close()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()

	var waiting, probes atomic.Int64
	count := func(e connect.Event) {
		switch {
		case e.Phase == connect.PhaseHealth && e.Status == connect.StatusStarted:
			waiting.Add(1)
		case e.Phase == connect.PhaseHealth && e.Status == connect.StatusProgress:
			probes.Add(1)
		}
	}
	failures := make([]error, waiters)
	var callers sync.WaitGroup
	began := time.Now()
	for i := range waiters {
		callers.Go(func() {
			_, failures[i] = h.connect(ctx, request(fmt.Sprintf("session-%d", i)), count)
		})
	}
	var a waitingAnswer
	if !eventually(func() bool { return waiting.Load() == int64(waiters) }) {
		return nil, fmt.Errorf("only %d of %d sessions wait", waiting.Load(), waiters)
	}
	a.Started = time.Since(began)

	pass(warmUp)
	a.RestMB = memory(os.Getpid(), "VmRSS")
	cpuBefore, probesBefore, began := cpuTime(), probes.Load(), time.Now()
	pass(measured)
	elapsed := time.Since(began)
	a.Cores = ratio(cpuTime()-cpuBefore, elapsed)
	a.Probes = float64(probes.Load()-probesBefore) / elapsed.Seconds()

	began = time.Now()
	cancel()
	callers.Wait()
	a.Undone = time.Since(began)
	a.PeakMB = memory(os.Getpid(), "VmHWM")
	for i, err := range failures {
		var failure *connect.Error
		if !errors.As(err, &failure) || failure.Code != connect.CodeCancelled || failure.Cleanup != connect.CleanupDone {
			return nil, fmt.Errorf("session %d ended with %#v", i, err)
		}
	}
	return a, h.nothingLeft()
}

// cpuTime is what this process has used so far.
func cpuTime() time.Duration {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		panic(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}
