// Command berth-provider-runloop is the provider for Runloop: its sandboxes are devboxes.
package main

import "github.com/berth-dev/berth/shared/provider"

func main() {
	provider.Serve(provider.Info{
		Name: "runloop", Version: "0.1.0", Summary: "Sandboxes as Runloop devboxes.",
		EndpointHeaders: []string{tokenHeader},
	}, open)
}
