// Command berth-provider-acme is the berth plugin for acme.
package main

import "github.com/berth-dev/berth/shared/provider"

// version is the plugin's own. A release build sets it: see the Makefile.
var version = "0.1.0"

func main() {
	provider.Serve(provider.Info{
		Name: "acme", Version: version, Summary: "Sandboxes of acme.", EndpointHeaders: []string{tokenHeader},
	}, open)
}
