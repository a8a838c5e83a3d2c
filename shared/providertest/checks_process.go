package providertest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/berth-dev/berth/shared/provider"
)

// Processes of their own, their ends, and what they must not show.

func handshake(ctx context.Context, t *trial) error {
	i, err := t.launch(ctx)
	if err != nil {
		return err
	}
	t.shared = i
	t.saw("%s", shorten(i.handshake, 60))
	return nil
}

func healthService(ctx context.Context, t *trial) error {
	answer, err := grpc_health_v1.NewHealthClient(t.shared.conn).Check(ctx, &grpc_health_v1.HealthCheckRequest{Service: "plugin"})
	if err != nil {
		return err
	}
	if answer.GetStatus() != grpc_health_v1.HealthCheckResponse_SERVING {
		return fmt.Errorf("it answers %s", answer.GetStatus())
	}
	return nil
}

// strangeClient connects with certificates that the plugin was not told of.
func strangeClient(ctx context.Context, t *trial) error {
	if t.plugin.NoMTLS {
		return skipf("it runs without mTLS")
	}
	if t.shared.network != "unix" && t.shared.network != "tcp" {
		return skipf("it listens on %q", t.shared.network)
	}
	strange, err := newIdentity()
	if err != nil {
		return needed(err, "making a certificate")
	}
	for what, id := range map[string]*identity{"a certificate that it was not told of": strange, "no certificate": {}} {
		conn, err := dialPlain(t.shared.network, t.shared.address, t.shared.certificate, id)
		if err != nil {
			return needed(err, "connecting")
		}
		_, err = provider.NewClient(conn).Describe(ctx)
		conn.Close()
		if err == nil {
			return fmt.Errorf("it serves a client that shows %s", what)
		}
	}
	return nil
}

// endsAfter launches a process, asks it to exit, and waits until it did.
func (t *trial) endsAfter(ctx context.Context, what string, tell func(*instance) error) error {
	i, err := t.open(ctx, nil)
	if err != nil {
		return needed(err, "starting another process of the plugin")
	}
	return t.ends(ctx, i, what, tell)
}

func (t *trial) ends(ctx context.Context, i *instance, what string, tell func(*instance) error) error {
	began := time.Now()
	if err := tell(i); err != nil {
		return err
	}
	if !i.endsWithin(ctx, t.pace.exit) {
		return fmt.Errorf("%s after %s it still runs", t.pace.exit, what)
	}
	t.saw("it ended %s after %s", time.Since(began).Round(time.Millisecond), what)
	return nil
}

func endsWithStdin(ctx context.Context, t *trial) error {
	return t.endsAfter(ctx, "the end of its standard input", func(i *instance) error { return i.stdin.Close() })
}

func endsOnShutdown(ctx context.Context, t *trial) error {
	return t.endsAfter(ctx, "Shutdown", func(i *instance) error {
		if err := i.shutdown(ctx); status.Code(err) == codes.Unimplemented {
			return errors.New("it does not serve plugin.GRPCController")
		}
		return nil // an exit may well cut its answer off
	})
}

func endsOnSigterm(ctx context.Context, t *trial) error {
	return t.endsAfter(ctx, "SIGTERM", func(i *instance) error { return syscall.Kill(i.pid, syscall.SIGTERM) })
}

func endsInACall(ctx context.Context, t *trial) error {
	i, err := t.open(ctx, nil)
	if err != nil {
		return needed(err, "starting another process of the plugin")
	}
	r := t.running()
	if err := r.ready(); err != nil {
		return err
	}
	asked := make(chan struct{}, 1)
	req := t.pingRequest(r.sandbox, t.web.hanging(asked))
	req.Health.Timeout = t.pace.check
	var call sync.WaitGroup
	defer call.Wait()
	calling, cancel := context.WithCancel(ctx)
	defer cancel()
	call.Go(func() {
		defer cancel()
		_, _ = i.client.Ping(calling, req)
	})
	if !arrived(calling, asked, t.pace.verdict) {
		return skipf("the Ping that was to be under way did not ask the server")
	}
	return t.ends(ctx, i, "it was told to", func(i *instance) error { // as a host does
		_ = i.shutdown(ctx) // an exit may well cut its answer off,
		_ = i.stdin.Close() // or come before this
		return nil
	})
}

// endpointLasts asks the endpoint of a server that is alive once more, when it has been there for a while.
func endpointLasts(ctx context.Context, t *trial) error {
	r := t.running()
	if err := r.ready(); err != nil {
		return err
	}
	if r.aliveErr != nil {
		return needed(r.aliveErr, "the health wait")
	}
	if r.openErr != nil {
		return needed(r.openErr, "the endpoint of StartServer")
	}
	wait(ctx, time.Until(r.opened.Add(t.pace.lasting)))
	if end := r.endpoints.Server.ExpiresAt; !end.IsZero() && time.Now().After(end) {
		return skipf("its expires_at has passed: hosts ask for another one")
	}
	age := time.Since(r.opened).Round(time.Millisecond)
	if err := t.opens(ctx, r.endpoints.Server); err != nil {
		return fmt.Errorf("after %s: %w", age, err)
	}
	t.saw("it was asked after %s", age)
	return nil
}

func stillAlive(_ context.Context, t *trial) error {
	if !t.shared.alive() {
		return fmt.Errorf("it ended: %s%s", t.shared.end, t.shared.lastWords())
	}
	return nil
}

func stdoutSilent(_ context.Context, t *trial) error {
	for _, i := range t.started() {
		if noise := i.stdout.bytes(); i.conn != nil && len(noise) > 0 {
			return fmt.Errorf("%d bytes came after the handshake, beginning with %.80q", len(noise), noise)
		}
	}
	return nil
}

// started are the processes so far.
func (s *suite) started() []*instance {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	return append([]*instance(nil), s.instances...)
}

// shown returns which secret is in a text, or "".
func (s *suite) shown(text []byte) (what string, found bool) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	for secret, what := range s.secrets {
		if bytes.Contains(text, []byte(secret)) {
			return what, true
		}
	}
	return "", false
}

func secretsInErrors(_ context.Context, t *trial) error {
	for _, i := range t.started() {
		if what, found := t.shown(i.errors.bytes()); found {
			return fmt.Errorf("the value of %s is in an error or the reason of a Ping", what)
		}
	}
	return nil
}

func secretsInOutput(_ context.Context, t *trial) error {
	for _, i := range t.started() {
		for _, output := range []*capture{&i.stderr, &i.stdout, &i.printed} {
			if what, found := t.shown(output.bytes()); found {
				return fmt.Errorf("the value of %s is in what the plugin wrote", what)
			}
		}
	}
	return nil
}

func secretsInProcesses(_ context.Context, t *trial) error {
	if runtime.GOOS != "linux" {
		return skipf("there is no /proc to look into")
	}
	if err := t.running().ready(); err != nil {
		return err
	}
	for _, i := range t.started() {
		environment, _ := os.ReadFile(fmt.Sprintf("/proc/%d/environ", i.pid)) // it may have ended
		if what, found := t.shown(environment); found {
			return fmt.Errorf("the value of %s is in the environment of the plugin's process", what)
		}
	}
	lines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, file := range lines {
		line, _ := os.ReadFile(file)
		if what, found := t.shown(line); found {
			program, _, _ := strings.Cut(string(line), "\x00")
			return fmt.Errorf("the value of %s is in the command line of a process, %s", what, filepath.Base(program))
		}
	}
	t.saw("%d processes were looked at", len(lines))
	return nil
}
