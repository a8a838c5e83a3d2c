// Command berth-provider-e2b is the berth plugin for E2B: its sandboxes are E2B's, at e2b.app or in a cluster of one's own.
package main

import "github.com/berth-dev/berth/shared/provider"

func main() {
	provider.Serve(provider.Info{
		Name: "e2b", Version: "0.1.0", Summary: "Sandboxes at E2B.",
		EndpointHeaders: []string{trafficHeader, idHeader, portHeader},
	}, open)
}
