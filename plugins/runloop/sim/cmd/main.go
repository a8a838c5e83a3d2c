// Command cmd serves a simulated Runloop on loopback ports until it is interrupted. It prints the environment that
// directs berth, and Runloop's SDKs, to it.
package main

import (
	"flag"
	"time"

	"github.com/berth-dev/berth/plugins/internal/simcloud"
	"github.com/berth-dev/berth/plugins/runloop/sim"
)

func main() {
	options := sim.Options{}
	flag.DurationVar(&options.Provision, "provision", 300*time.Millisecond, "from a create until a devbox runs")
	flag.DurationVar(&options.Suspend, "suspend", 200*time.Millisecond, "from a suspend until it is done")
	flag.DurationVar(&options.Resume, "resume", 200*time.Millisecond, "from a resume until the devbox runs")
	flag.DurationVar(&options.LazyStatus, "lazy-status", 50*time.Millisecond, "how long a devbox reads as before after a suspend or resume")
	flag.IntVar(&options.Quota, "quota", 0, "how many devboxes may run; 0 for any number")
	simcloud.ServeSimulation("RUNLOOP", func(path []string) (simcloud.Simulation, error) {
		options.PathDirs = path
		cloud, err := sim.Start(options)
		if err != nil {
			return simcloud.Simulation{}, err
		}
		return simcloud.Simulation{Environment: cloud.Environment(), Control: cloud.Control(), Close: cloud.Close}, nil
	})
}
