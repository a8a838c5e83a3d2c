// Command cmd serves a simulated Runloop on loopback ports until it is interrupted. It prints the environment that
// directs berth, and Runloop's clients, to it.
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

	"github.com/berth-dev/berth/plugins/internal/simcloud"
	"github.com/berth-dev/berth/plugins/runloop/sim"
)

func main() {
	simcloud.Main()
	options := sim.Options{}
	flag.DurationVar(&options.Provision, "provision", 300*time.Millisecond, "from a create until a devbox runs")
	flag.DurationVar(&options.Suspend, "suspend", 200*time.Millisecond, "from a suspend until it is done")
	flag.DurationVar(&options.Resume, "resume", 200*time.Millisecond, "from a resume until the devbox runs")
	flag.DurationVar(&options.LazyStatus, "lazy-status", 50*time.Millisecond, "how long a devbox reads as before after a suspend or resume")
	flag.IntVar(&options.Quota, "quota", 0, "how many devboxes may run; 0 for any number")
	path := flag.String("path", "", "directories whose executables the devboxes find, separated by \":\"")
	flag.Parse()
	options.PathDirs = filepath.SplitList(*path)
	if err := run(options); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(options sim.Options) error {
	if err := simcloud.Isolation(); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	cloud, err := sim.Start(options)
	if err != nil {
		return err
	}
	defer cloud.Close()
	environment := cloud.Environment()
	environment["RUNLOOP_SIM_CONTROL"] = cloud.ControlURL()
	for _, name := range slices.Sorted(maps.Keys(environment)) {
		fmt.Printf("export %s='%s'\n", name, environment[name])
	}
	os.Stdout.Close() // so that scripts can read the environment until EOF
	<-ctx.Done()
	return nil
}
