// Command berth connects AI agents' sessions to cloud sandboxes.
package main

import (
	"os"

	"github.com/berth-dev/berth/host/cli"
)

func main() {
	os.Exit(cli.Main(os.Args[1:], os.Stdout, os.Stderr, os.LookupEnv))
}
