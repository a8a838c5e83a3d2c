package simcloud

import (
	"context"
	"flag"
	"fmt"
	"maps"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// Simulation is a running simulated cloud.
type Simulation struct {
	// Environment directs berth, and the cloud's own SDKs, to the cloud.
	Environment map[string]string
	// Control is the API for scripts: see [Control].
	Control http.Handler
	// Close shuts down the cloud.
	Close func()
}

// ServeSimulation serves a simulated cloud until the process is interrupted. A program's main function must only define
// its own flags and call it. It parses the flags, prints the environment and NAME_SIM_CONTROL, which is the URL of the
// API for scripts, and closes standard output so that scripts can read it until EOF. pathDirs are the directories whose
// executables are found by name in sandboxes.
func ServeSimulation(name string, start func(pathDirs []string) (Simulation, error)) {
	Main()
	path := flag.String("path", "", "directories whose executables the sandboxes find, separated by \":\"")
	flag.Parse()
	if err := serveSimulation(name, func() (Simulation, error) { return start(filepath.SplitList(*path)) }); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func serveSimulation(name string, start func() (Simulation, error)) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := Isolation(); err != nil {
		return err
	}
	simulation, err := start()
	if err != nil {
		return err
	}
	defer simulation.Close()
	control, err := Serve(simulation.Control, ServeOptions{})
	if err != nil {
		return err
	}
	defer control.Close()
	simulation.Environment[name+"_SIM_CONTROL"] = control.URL
	var exports strings.Builder // printed at once, so that nobody sees only a part
	for _, variable := range slices.Sorted(maps.Keys(simulation.Environment)) {
		fmt.Fprintf(&exports, "export %s='%s'\n", variable, simulation.Environment[variable])
	}
	fmt.Print(exports.String())
	os.Stdout.Close()
	<-ctx.Done()
	return nil
}
