// Command berth-provider-modal gets sandboxes from Modal.
package main

import "github.com/berth-dev/berth/shared/provider"

func main() {
	provider.Serve(provider.Info{
		Name: "modal", Version: "0.1.0", Summary: "Sandboxes of Modal.",
		EndpointHeaders: []string{tokenHeader},
	}, open)
}
