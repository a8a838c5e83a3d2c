package bench

import (
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// figures are measurements of one thing.
type figures []time.Duration

// percentile is the smallest measurement that p percent of all do not exceed.
func (f figures) percentile(p int) time.Duration {
	sorted := slices.Sorted(slices.Values(f))
	return sorted[max(0, (len(sorted)*p+99)/100-1)]
}

func (f figures) median() time.Duration { return f.percentile(50) }
func (f figures) max() time.Duration    { return slices.Max(f) }

func (f figures) mean() time.Duration {
	var sum time.Duration
	for _, d := range f {
		sum += d
	}
	return sum / time.Duration(len(f))
}

// size returns the size of an experiment: the full one, or with -short a smaller one.
func size(full, short int) int {
	if testing.Short() {
		return short
	}
	return full
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

func ratio(a, b time.Duration) float64 { return float64(a) / float64(b) }

// report adds figures to the benchmark's line, in place of the time per operation, which means nothing here.
func report(b *testing.B, values map[string]float64) {
	b.Helper()
	b.ReportMetric(0, "ns/op")
	for unit, value := range values {
		b.ReportMetric(value, unit)
	}
}

// memory reads a field of a process's memory, such as "VmRSS" or "VmHWM" (the peak), in MB. It is 0 where the system
// does not tell, which is everywhere but on Linux.
func memory(pid int, field string) float64 {
	status, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(status)) {
		words := strings.Fields(line)
		if len(words) == 3 && words[0] == field+":" {
			kilobytes, _ := strconv.ParseFloat(words[1], 64)
			return kilobytes / 1024
		}
	}
	return 0
}

func TestFiguresAreSummedUp(t *testing.T) {
	t.Parallel()
	var f figures
	for i := range 20 {
		f = append(f, time.Duration((i*7)%20+1)) // 1 to 20 in another order
	}
	for name, got := range map[string][2]time.Duration{
		"median": {f.median(), 10}, "p95": {f.percentile(95), 19}, "max": {f.max(), 20}, "mean": {f.mean(), 10},
		"median of one": {figures{7}.median(), 7}, "p95 of one": {figures{7}.percentile(95), 7},
	} {
		if got[0] != got[1] {
			t.Errorf("%s is %d, not %d", name, got[0], got[1])
		}
	}
}
