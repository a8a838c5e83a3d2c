// Command berth-provider-local is the provider that needs no account: its sandboxes are processes on this machine.
package main

import (
	"os"

	"github.com/berth-dev/berth/plugins/local/keeper"
	"github.com/berth-dev/berth/shared/provider"
)

func main() {
	if len(os.Args) == 3 && os.Args[1] == keeper.Argument { // started by Create and Attach, to outlive this plugin
		os.Exit(keeper.Main(os.Args[2]))
	}
	provider.Serve(provider.Info{Name: "local", Version: "0.1.0", Summary: "Sandboxes as processes on this machine."}, open)
}
