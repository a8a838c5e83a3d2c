// Command cmd serves a simulated Modal on loopback ports until it is interrupted. It prints the environment that
// directs berth, and Modal's SDKs, to it.
package main

import (
	"flag"
	"os"
	"time"

	"github.com/berth-dev/berth/plugins/internal/simcloud"
	"github.com/berth-dev/berth/plugins/modal/sim"
)

func main() {
	create := flag.Duration("create", 200*time.Millisecond, "how long creating a sandbox takes, and building an image")
	page := flag.Int("page", 100, "the most sandboxes that a listing gives at once")
	routerTLS := flag.Bool("router-tls", false, "let the command router speak TLS, as the Python SDK wants it on loopback addresses")
	simcloud.ServeSimulation("MODAL", func(path []string) (simcloud.Simulation, error) {
		trusted, err := certificateFile()
		if err != nil {
			return simcloud.Simulation{}, err
		}
		cloud, err := sim.New(sim.Options{PathDirs: path, Create: *create, Build: *create, PageSize: *page, RouterTLS: *routerTLS})
		if err != nil {
			os.Remove(trusted)
			return simcloud.Simulation{}, err
		}
		environment := cloud.Environment()
		environment["MODAL_SIM_CERTIFICATE"] = trusted
		end := func() {
			cloud.Close()
			os.Remove(trusted)
		}
		return simcloud.Simulation{Environment: environment, Control: cloud.Control(), Close: end}, nil
	})
}

// certificateFile writes the certificate that clients of public ports must trust.
func certificateFile() (string, error) {
	text, err := sim.Certificate()
	if err != nil {
		return "", err
	}
	file, err := os.CreateTemp("", "modal-sim-*.pem")
	if err != nil {
		return "", err
	}
	defer file.Close()
	_, err = file.Write(text)
	return file.Name(), err
}
