// Command berth-provider-mock is a provider without a real cloud: its sandboxes are entries in memory or in a file, and
// it fails in whatever way it is told to. It is for testing what uses providers: the berth host, and platforms that
// want to see how they handle a provider that is slow, wrong or dying.
package main

import (
	"fmt"
	"os"

	"github.com/berth-dev/berth/shared/provider"
)

// The original standard streams: go-plugin replaces os.Stdout and os.Stderr.
var processStdout, processStderr = os.Stdout, os.Stderr

func main() {
	if err := launchFaults(os.Getenv(launchVariable)); err != nil {
		fmt.Fprintln(processStderr, err)
		os.Exit(2)
	}
	if err := launchBreaches(os.Getenv(breachVariable)); err != nil {
		fmt.Fprintln(processStderr, err)
		os.Exit(2)
	}
	if now.relay != nil { // the child has served
		return
	}
	provider.Serve(provider.Info{
		Name: "mock", Version: "0.1.0", Summary: "Sandboxes that do not exist, and fail on request.",
		EndpointHeaders: []string{tokenHeader},
	}, open)
}
