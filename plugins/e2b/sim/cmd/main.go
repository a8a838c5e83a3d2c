// Command cmd serves a simulated E2B on loopback ports until it is interrupted. It prints the environment that directs
// berth, and E2B's SDKs, to it.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/berth-dev/berth/plugins/e2b/sim"
	"github.com/berth-dev/berth/plugins/internal/simcloud"
)

// key is valid only for the simulator.
var key = "e2b_" + strings.Repeat("5", 40)

func main() {
	simcloud.Main()
	path := flag.String("path", "", "directories, separated by colons, whose executables sandboxes find by name")
	dial := flag.Duration("dial-time", time.Second, "how long the proxy tries a port on which nothing listens")
	flag.Parse()
	if err := run(*path, *dial); err != nil {
		fmt.Fprintln(os.Stderr, "the simulated E2B:", err)
		os.Exit(1)
	}
}

func run(path string, dial time.Duration) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := simcloud.Isolation(); err != nil {
		return err
	}
	cloud, err := sim.Start(sim.Options{Key: key, PathDirs: filepath.SplitList(path), DialTime: dial})
	if err != nil {
		return err
	}
	defer cloud.Close()
	control, err := simcloud.Serve(simcloud.Control(&cloud.Traffic, func() any { return cloud.Sandboxes() }), simcloud.ServeOptions{})
	if err != nil {
		return err
	}
	defer control.Close()
	fmt.Printf("export E2B_API_KEY=%s\nexport E2B_API_URL=%s\nexport E2B_SANDBOX_URL=%s\nexport E2B_SIM_CONTROL=%s\n",
		key, cloud.APIURL, cloud.SandboxURL, control.URL)
	os.Stdout.Close() // so that scripts can read the environment until EOF
	<-ctx.Done()
	return nil
}
