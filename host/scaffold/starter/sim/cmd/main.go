// Command cmd runs the simulated cloud until it is interrupted, and prints the environment that points the plugin at it.
package main

import (
	"context"
	"crypto/rand"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/berth-dev/berth/host/scaffold/starter/sim"
)

func main() {
	listen := flag.String("listen", "127.0.0.1:0", "the `address` of the API")
	boot := flag.Duration("boot", 200*time.Millisecond, "how long a box takes to start or to wake")
	flag.Parse()
	key := "sim-" + rand.Text()
	cloud, err := sim.Start(sim.Options{Key: key, Listen: *listen, Boot: *boot})
	if err != nil {
		fmt.Fprintln(os.Stderr, "the simulated cloud does not start:", err)
		os.Exit(1)
	}
	defer cloud.Close()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	fmt.Printf("export ACME_URL=%s\nexport ACME_API_KEY=%s\n", cloud.URL, key)
	<-ctx.Done()
}
