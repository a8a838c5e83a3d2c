// Command cmd serves a simulated E2B on loopback ports until it is interrupted. It prints the environment that directs
// berth, and E2B's SDKs, to it.
package main

import (
	"flag"
	"strings"
	"time"

	"github.com/berth-dev/berth/plugins/e2b/sim"
	"github.com/berth-dev/berth/plugins/internal/simcloud"
)

// key is valid only for the simulator.
var key = "e2b_" + strings.Repeat("5", 40)

func main() {
	dial := flag.Duration("dial-time", time.Second, "how long the proxy tries a port on which nothing listens")
	forward := flag.Duration("forward-time", time.Second, "how long a server on 127.0.0.1 alone cannot be reached")
	simcloud.ServeSimulation("E2B", func(path []string) (simcloud.Simulation, error) {
		cloud, err := sim.Start(sim.Options{Key: key, PathDirs: path, DialTime: *dial, ForwardTime: *forward})
		if err != nil {
			return simcloud.Simulation{}, err
		}
		return simcloud.Simulation{
			Environment: map[string]string{"E2B_API_KEY": key, "E2B_API_URL": cloud.APIURL, "E2B_SANDBOX_URL": cloud.SandboxURL},
			Control:     simcloud.Control(&cloud.Traffic, func() any { return cloud.Sandboxes() }),
			Close:       cloud.Close,
		}, nil
	})
}
