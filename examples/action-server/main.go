// Command berth-action-server executes an agent's actions inside a sandbox: it runs commands and reads and writes files
// for clients that have the session's key. It speaks the protocol of OpenHands' V0 action execution server, so clients
// of that server can use it. It is small on purpose:
//
//	GET  /alive           {"status":"ok"} once it is ready; no key needed
//	GET  /server_info     uptime, idle time, resources; no key needed
//	POST /execute_action  {"action":{"action":"run","args":{"command":"..."}}}, or "read", or "write"
//
// Every command runs in its own shell: "cd" does not affect the next command; use the argument "cwd" instead. The
// server restricts nothing: a command may do what the sandbox allows. The key protects the server from the network, not
// from the code it runs.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

const (
	// stopGrace is how long requests in progress may take after a SIGTERM. Then their commands are killed.
	stopGrace = 3 * time.Second
	// endGrace is how long they may then take to answer.
	endGrace = time.Second
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal kills the process
	os.Exit(run(ctx, os.Args[1:], os.Stderr))
}

// run returns the exit code: 2 for wrong usage, 1 for a server that could not run.
func run(ctx context.Context, args []string, stderr io.Writer) int {
	options, err := parse(args, stderr)
	if errors.Is(err, flag.ErrHelp) {
		return 0
	}
	if err != nil {
		fmt.Fprintf(stderr, "berth-action-server: %v\n", err)
		return 2
	}
	if err := serve(ctx, options, stderr); err != nil {
		fmt.Fprintf(stderr, "berth-action-server: %v\n", err)
		return 1
	}
	return 0
}

type options struct {
	host      string
	port      int
	workdir   string
	key       string
	bootDelay time.Duration
	initDelay time.Duration
}

// parse parses flags and environment. It removes SESSION_API_KEY from the environment, so that commands do not inherit
// it and print it by accident.
func parse(args []string, stderr io.Writer) (options, error) {
	o := options{key: os.Getenv("SESSION_API_KEY")}
	os.Unsetenv("SESSION_API_KEY")
	host := os.Getenv("HOST")
	switch {
	case host != "":
	case o.key != "":
		host = "0.0.0.0"
	default:
		host = "127.0.0.1"
	}
	port := os.Getenv("PORT")
	if port == "" {
		port = "8000"
	}

	flags := flag.NewFlagSet("berth-action-server", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.StringVar(&o.host, "host", host, "address to listen on; also HOST; else 0.0.0.0 with a SESSION_API_KEY, 127.0.0.1 without")
	flags.StringVar(&port, "port", port, "port to listen on, 0 for any; also PORT")
	flags.StringVar(&o.workdir, "workdir", ".", "where commands run and what paths are relative to; made if missing")
	flags.DurationVar(&o.bootDelay, "boot-delay", 0, "wait this long before listening, to imitate a slow server")
	flags.DurationVar(&o.initDelay, "init-delay", 0, `after listening, say "not initialized" for this long`)
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	if flags.NArg() > 0 {
		return o, fmt.Errorf("unexpected argument %q; see --help", flags.Arg(0))
	}
	number, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return o, fmt.Errorf("port %q is not a number from 0 to 65535", port)
	}
	o.port = int(number)
	return o, nil
}

// serve runs the server until ctx ends, then waits a moment for requests in progress. It leaves no command behind.
func serve(ctx context.Context, o options, stderr io.Writer) error {
	workdir, err := filepath.Abs(o.workdir)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(workdir, 0o755); err != nil {
		return fmt.Errorf("making the working directory: %w", err)
	}
	if !wait(ctx, o.bootDelay) {
		return nil
	}
	var config net.ListenConfig
	listener, err := config.Listen(ctx, "tcp", net.JoinHostPort(o.host, strconv.Itoa(o.port)))
	if err != nil {
		return err
	}

	work, endWork := context.WithCancel(context.WithoutCancel(ctx))
	defer endWork()
	handler := newServer(workdir, o.key)
	defer handler.endLeftovers()
	server := &http.Server{
		Handler:           handler,
		BaseContext:       func(net.Listener) context.Context { return work },
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
	}
	if o.initDelay > 0 {
		initialized := time.AfterFunc(o.initDelay, handler.setReady)
		defer initialized.Stop()
	} else {
		handler.setReady() // before the message that it listens, so that a client can come at once
	}

	ended := make(chan error, 1)
	go func() { ended <- server.Serve(listener) }()
	if o.key == "" {
		fmt.Fprintln(stderr, "no SESSION_API_KEY: whoever reaches this address can run commands")
	}
	port := strconv.Itoa(listener.Addr().(*net.TCPAddr).Port)
	fmt.Fprintf(stderr, "listening on http://%s\n", net.JoinHostPort(o.host, port))

	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	if shutdown(work, server, stopGrace) != nil {
		endWork()
		if shutdown(context.WithoutCancel(ctx), server, endGrace) != nil {
			server.Close()
		}
	}
	if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

func shutdown(ctx context.Context, server *http.Server, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return server.Shutdown(ctx)
}

// wait reports whether d passed before ctx ended.
func wait(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
