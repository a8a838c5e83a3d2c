package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/berth-dev/berth/internal/testbin"
)

// BenchmarkColdConnect is the life of one `berth connect` process on a cloud that takes no time: read the
// configuration, start the plugin, connect, stop the plugin, exit. Next to it stands `berth version`, which does
// nothing but start and exit.
func BenchmarkColdConnect(b *testing.B) {
	const warmUps = 3
	rounds := size(40, 3)
	berth := testbin.Build(b, "./host")
	plugins := filepath.Dir(testbin.Build(b, "./plugins/mock"))
	dir := b.TempDir()
	state := filepath.Join(dir, "cloud.json")
	config := filepath.Join(dir, "config.hcl")
	if err := os.WriteFile(config, fmt.Appendf(nil, coldConfig, plugins, filepath.Join(dir, "state"), state), 0o600); err != nil {
		b.Fatal(err)
	}

	run := func(args ...string) (took time.Duration, stdout []byte) {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		command := exec.CommandContext(ctx, berth, args...)
		command.Env = []string{"HOME=" + dir, "PATH=" + os.Getenv("PATH"), "TMPDIR=" + os.TempDir()}
		var complaints bytes.Buffer
		command.Stderr = &complaints
		began := time.Now()
		stdout, err := command.Output()
		took = time.Since(began)
		if err != nil {
			b.Fatalf("berth %s: %v\n%s%s", args[0], err, stdout, complaints.Bytes())
		}
		return took, stdout
	}
	connects := 0
	connect := func(provider string) time.Duration {
		connects++
		session := fmt.Sprintf("session-%d", connects) // the records know the earlier ones as the other provider's
		took, stdout := run("connect", session, "--config", config, "--provider", provider, "-o", "json", "--progress", "none")
		var result struct {
			Sandbox struct{ Origin string }
		}
		if err := json.Unmarshal(stdout, &result); err != nil || result.Sandbox.Origin != "created" {
			b.Fatalf("%v\n%s", err, stdout)
		}
		if err := os.Remove(state); err != nil { // the next connect finds an empty cloud
			b.Fatal(err)
		}
		return took
	}

	var mtls, plain, version figures
	for range warmUps + rounds {
		mtls = append(mtls, connect("mock"))
		took, _ := run("version")
		version = append(version, took)
		plain = append(plain, connect("plain"))
	}
	mtls, plain, version = mtls[warmUps:], plain[warmUps:], version[warmUps:]
	report(b, map[string]float64{
		"connect-ms": ms(mtls.median()), "connect-p95-ms": ms(mtls.percentile(95)),
		"no-mtls-ms": ms(plain.median()), "no-mtls-p95-ms": ms(plain.percentile(95)),
		"version-ms": ms(version.median()), "ratio-to-version": ratio(mtls.median(), version.median()),
	})
	b.Logf("medians of %d processes; aim: connect-ms < 150", rounds)
}

const coldConfig = `
host {
  plugin_dir = %[1]q
  state_dir  = %[2]q
}
provider "mock" {
  config {
    state = %[3]q
  }
}
provider "plain" {
  plugin = "mock"
  mtls   = false
  config {
    state = %[3]q
  }
}
`
