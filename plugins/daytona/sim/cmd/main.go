// Command cmd serves a simulated Daytona on loopback ports until it is interrupted. It prints the environment that
// directs berth, and Daytona's SDKs, to it.
package main

import (
	"context"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/berth-dev/berth/plugins/daytona/sim"
	"github.com/berth-dev/berth/plugins/internal/simcloud"
)

func main() {
	simcloud.Main()
	path := flag.String("path", "", "directories whose executables the sandboxes find, separated by \":\"")
	create := flag.Duration("create", 200*time.Millisecond, "how long creating, starting and stopping take")
	flag.Parse()
	if err := serve(filepath.SplitList(*path), *create); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func serve(path []string, takes time.Duration) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := simcloud.Isolation(); err != nil {
		return err
	}
	cloud, err := sim.New(sim.Options{
		PathDirs: path, Create: takes, Start: takes, Stop: takes, Archive: takes, Restore: takes, Delete: takes, ListLag: takes,
	})
	if err != nil {
		return err
	}
	defer cloud.Close()
	control, err := simcloud.Serve(cloud.Control(), simcloud.ServeOptions{})
	if err != nil {
		return err
	}
	defer control.Close()
	environment := cloud.Environment()
	environment["DAYTONA_SIM_CONTROL"] = control.URL
	for _, name := range slices.Sorted(maps.Keys(environment)) {
		fmt.Printf("export %s=%s\n", name, environment[name])
	}
	os.Stdout.Close() // so that scripts can read the environment until EOF
	<-ctx.Done()
	return nil
}
