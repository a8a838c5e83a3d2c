// Command cmd serves a simulated Daytona on loopback ports until it is interrupted. It prints the environment that
// directs berth, and Daytona's SDKs, to it.
package main

import (
	"flag"
	"time"

	"github.com/berth-dev/berth/plugins/daytona/sim"
	"github.com/berth-dev/berth/plugins/internal/simcloud"
)

func main() {
	create := flag.Duration("create", 200*time.Millisecond, "how long creating, starting and stopping take")
	simcloud.ServeSimulation("DAYTONA", func(path []string) (simcloud.Simulation, error) {
		cloud, err := sim.New(sim.Options{
			PathDirs: path, Create: *create, Start: *create, Stop: *create, Archive: *create, Restore: *create, Delete: *create, ListLag: *create,
		})
		if err != nil {
			return simcloud.Simulation{}, err
		}
		return simcloud.Simulation{Environment: cloud.Environment(), Control: cloud.Control(), Close: cloud.Close}, nil
	})
}
