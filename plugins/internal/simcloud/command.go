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

// Simulation is a simulated cloud that runs.
type Simulation struct {
	// Environment points berth, and the cloud's own SDKs, at it.
	Environment map[string]string
	// Control steers it, see Control.
	Control http.Handler
	// Close ends it.
	Close func()
}

// ServeSimulation serves a simulated cloud until the process is interrupted. It is the main function of a program: it parses the
// flags, beside which start may use flags of its own, prints the environment and NAME_SIM_CONTROL, where the control surface
// is, and closes standard output, so that a script can read that to its end. pathDirs are the directories whose executables
// sandboxes find by name.
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
	var exports strings.Builder // whoever sees a line of it sees them all
	for _, variable := range slices.Sorted(maps.Keys(simulation.Environment)) {
		fmt.Fprintf(&exports, "export %s='%s'\n", variable, simulation.Environment[variable])
	}
	fmt.Print(exports.String())
	os.Stdout.Close()
	<-ctx.Done()
	return nil
}
