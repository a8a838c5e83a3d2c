// Command berth connects AI agents' sessions to cloud sandboxes.
package main

import (
	"os"

	"github.com/berth-dev/berth/host/cli"
	"github.com/berth-dev/berth/host/fleet"
)

func main() {
	os.Exit(cli.Main(os.Args[1:], os.Stdout, os.Stderr, os.LookupEnv, fleet.Options{}))
}
