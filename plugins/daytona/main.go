// Command berth-provider-daytona gets sandboxes from Daytona.
package main

import "github.com/berth-dev/berth/shared/provider"

func main() {
	provider.Serve(provider.Info{
		Name: "daytona", Version: "0.1.0", Summary: "Sandboxes of Daytona, its cloud or one's own.",
		EndpointHeaders: []string{tokenHeader, plainHeader},
	}, open)
}
