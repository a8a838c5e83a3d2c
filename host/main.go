// Command berth connects AI agents' sessions to cloud sandboxes.
package main

import (
	"os"

	"github.com/berth-dev/berth/host/cli"
	"github.com/berth-dev/berth/host/fleet"
	"github.com/berth-dev/berth/host/stdio"
)

func main() {
	os.Exit(cli.Main(os.Args[1:], stdio.Stdout(), os.Stderr, os.LookupEnv, fleet.Options{}))
}
