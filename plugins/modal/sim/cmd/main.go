// Command cmd serves a simulated Modal on loopback ports until it is interrupted. It prints the environment that
// directs berth, and Modal's SDKs, to it.
package main

import (
	"context"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/berth-dev/berth/plugins/internal/simcloud"
	"github.com/berth-dev/berth/plugins/modal/sim"
)

func main() {
	simcloud.Main()
	path := flag.String("path", "", "directories whose executables the sandboxes find, separated by \":\"")
	create := flag.Duration("create", 200*time.Millisecond, "how long creating a sandbox takes, and building an image")
	page := flag.Int("page", 100, "the most sandboxes that a listing gives at once")
	routerTLS := flag.Bool("router-tls", false, "let the command router speak TLS, as the Python SDK wants it on loopback addresses")
	flag.Parse()
	options := sim.Options{PathDirs: filepath.SplitList(*path), Create: *create, Build: *create, PageSize: *page, RouterTLS: *routerTLS}
	if err := serve(options); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func serve(options sim.Options) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := simcloud.Isolation(); err != nil {
		return err
	}
	cloud, err := sim.New(options)
	if err != nil {
		return err
	}
	defer cloud.Close()
	control, err := simcloud.Serve(cloud.Control(), simcloud.ServeOptions{})
	if err != nil {
		return err
	}
	defer control.Close()
	trusted, err := certificateFile()
	if err != nil {
		return err
	}
	defer os.Remove(trusted)
	environment := cloud.Environment()
	environment["MODAL_SIM_CONTROL"] = control.URL
	environment["MODAL_SIM_CERTIFICATE"] = trusted
	for _, name := range slices.Sorted(maps.Keys(environment)) {
		fmt.Printf("export %s=%s\n", name, environment[name])
	}
	os.Stdout.Close() // so that scripts can read the environment until EOF
	<-ctx.Done()
	return nil
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
