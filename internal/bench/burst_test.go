package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/berth-dev/berth/internal/testbin"
	"github.com/berth-dev/berth/shared/provider"
)

// BenchmarkBurst starts many `berth connect` processes at once, on the local provider and one SQLite file: as a platform
// without a daemon does. Every process starts a plugin of its own and a server.
//
// ratio-to-ideal is the time until the last one was connected, relative to the ideal: the number of processes times the
// processor time of one connect (berth and its plugin), over the number of cores. That one is measured just before, alone.
// The servers and whatever else the machine does are not in the ideal.
func BenchmarkBurst(b *testing.B) {
	sizes := []int{200, 500}
	if testing.Short() {
		sizes = []int{20}
	}
	for _, n := range sizes {
		b.Run(strconv.Itoa(n), func(b *testing.B) {
			f := newBurst(b)
			const alone = 5
			var one, processor figures
			for i := range alone {
				took, cpu, err := f.connect(fmt.Sprintf("alone-%d", i))
				if err != nil {
					b.Fatal(err)
				}
				one, processor = append(one, took), append(processor, cpu)
			}
			ideal := time.Duration(n) * processor.median() / time.Duration(runtime.NumCPU())

			times, processors, failures := make(figures, n), make(figures, n), make([]error, n)
			var all sync.WaitGroup
			began := time.Now()
			for i := range n {
				all.Go(func() { times[i], processors[i], failures[i] = f.connect(fmt.Sprintf("session-%d", i)) })
			}
			all.Wait()
			took := time.Since(began)

			failed := 0
			for _, err := range failures {
				if err != nil {
					failed++
					b.Error(err)
				}
			}
			if left, err := f.destroyAll(); err != nil || left != n+alone-failed {
				b.Errorf("%d sandboxes were there, %v", left, err)
			}
			report(b, map[string]float64{
				"failed": float64(failed), "ratio-to-ideal": ratio(took, ideal), "all-s": took.Seconds(), "ideal-s": ideal.Seconds(),
				"median-s": times.median().Seconds(), "one-ms": ms(one.median()), "one-cpu-ms": ms(processor.median()),
				"cpu-ms-each": ms(processors.mean()),
			})
			b.Logf("%d processes on %d cores; aim: failed = 0", n, runtime.NumCPU())
		})
	}
}

// burst is where the processes of a burst run.
type burst struct {
	dir, berth, config string
	plugin             string
	root               string // of the local provider
}

func newBurst(b *testing.B) burst {
	b.Helper()
	dir := b.TempDir()
	f := burst{
		dir: dir, berth: testbin.Build(b, "./host"), config: filepath.Join(dir, "config.hcl"),
		plugin: testbin.Build(b, "./plugins/local"), root: filepath.Join(dir, "root"),
	}
	server := testbin.Build(b, "./examples/action-server")
	text := fmt.Sprintf(burstConfig, filepath.Dir(f.plugin), filepath.Join(dir, "state"), owner, lifetime, f.root, server)
	if err := os.WriteFile(f.config, []byte(text), 0o600); err != nil {
		b.Fatal(err)
	}
	return f
}

const burstConfig = `
host {
  plugin_dir = %q
  state_dir  = %q
  owner      = %q
}
provider "local" {
  lifetime = %q
  config {
    root = %q
  }
}
server {
  preset  = "action-server"
  command = [%q, "--port", "{port}"]
}
`

// connect runs one process, and returns how long it took and the processor time of it and its plugin.
func (f burst) connect(session string) (took, processor time.Duration, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*lifetime)
	defer cancel()
	command := exec.CommandContext(ctx, f.berth, "connect", session, "--config", f.config, "--progress", "none", "-o", "json",
		"--timeout", lifetime.String())
	command.Env = []string{"HOME=" + f.dir, "PATH=" + os.Getenv("PATH"), "TMPDIR=" + f.dir}
	var complaints bytes.Buffer
	command.Stderr = &complaints
	began := time.Now()
	if err := command.Run(); err != nil {
		return 0, 0, fmt.Errorf("%s: %w: %s", session, err, complaints.Bytes())
	}
	return time.Since(began), command.ProcessState.UserTime() + command.ProcessState.SystemTime(), nil
}

// destroyAll ends all sandboxes and returns how many there were.
func (f burst) destroyAll() (int, error) {
	plugin, err := startPlugin(f.plugin, fmt.Sprintf(`{"root":%q}`, f.root), true)
	if err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), lifetime)
	defer cancel()
	sandboxes, err := plugin.List(ctx, provider.ListRequest{Owner: owner})
	failures := make([]error, len(sandboxes))
	free := make(chan struct{}, 8)
	var all sync.WaitGroup
	for i, sandbox := range sandboxes {
		free <- struct{}{}
		all.Go(func() {
			defer func() { <-free }()
			failures[i] = plugin.Destroy(ctx, provider.SandboxRef{Owner: owner, SandboxID: sandbox.ID})
		})
	}
	all.Wait()
	return len(sandboxes), errors.Join(err, errors.Join(failures...), plugin.Stop(ctx))
}
