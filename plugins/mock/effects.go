package main

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/berth-dev/berth/shared/provider"
)

// A moment runs a step before or after the honest call.
type moment func(step func(ctx context.Context, c *call) error) effect

func before(step func(context.Context, *call) error) effect { return effect{before: step} }
func after(step func(context.Context, *call) error) effect  { return effect{after: step} }

// Functions that parse arguments.

func atMost(arguments []string, n int) error {
	if len(arguments) > n {
		return fmt.Errorf("%q is one argument too many", arguments[n])
	}
	return nil
}

func durationAt(arguments []string, i int, otherwise time.Duration) (time.Duration, error) {
	if i >= len(arguments) {
		return otherwise, nil
	}
	d, err := time.ParseDuration(arguments[i])
	if err != nil || d < 0 {
		return 0, fmt.Errorf(`%q is not a duration such as "500ms"`, arguments[i])
	}
	return d, atMost(arguments, i+1)
}

func codeAt(arguments []string, i int, otherwise int) (int, error) {
	if i >= len(arguments) {
		return otherwise, nil
	}
	code, err := strconv.ParseUint(arguments[i], 10, 8)
	if err != nil {
		return 0, fmt.Errorf("%q is not an exit code", arguments[i])
	}
	return int(code), atMost(arguments, i+1)
}

func needDuration(arguments []string) (time.Duration, error) {
	if len(arguments) == 0 {
		return 0, errors.New("it needs a duration")
	}
	return durationAt(arguments, 0, 0)
}

func needCode(arguments []string) (int, error) {
	if len(arguments) == 0 {
		return 0, errors.New("it needs an exit code")
	}
	return codeAt(arguments, 0, 0)
}

// Functions that make effects.

func plain(e effect) func([]string) (effect, error) {
	return func(arguments []string) (effect, error) { return e, atMost(arguments, 0) }
}

// makeError makes the call fail. If named is set, the error names the sandbox that was created.
func makeError(at moment, named bool) func([]string) (effect, error) {
	return func(arguments []string) (effect, error) {
		name := first(arguments)
		failure, ok := failures[name]
		if !ok {
			known := slices.Sorted(maps.Keys(failures))
			return effect{}, fmt.Errorf("there is no error %q; there are %s", name, strings.Join(known, ", "))
		}
		wait, err := durationAt(arguments, 1, failure.RetryAfter)
		failure.RetryAfter = wait
		return at(func(_ context.Context, c *call) error {
			e := failure
			e.Message = fmt.Sprintf("mock: %s was told to fail with %s", c.method, name)
			if named {
				e.SandboxID = c.reply.(*provider.Sandbox).ID
			}
			return &e
		}), err
	}
}

func first(arguments []string) string {
	if len(arguments) == 0 {
		return ""
	}
	return arguments[0]
}

func makeInvalid(arguments []string) (effect, error) {
	attribute := first(arguments)
	if attribute == "" {
		return effect{}, errors.New("it needs an attribute")
	}
	return effect{before: func(context.Context, *call) error {
		return provider.InvalidField(attribute, "mock: configure was told to refuse it")
	}}, atMost(arguments, 1)
}

func panics(_ context.Context, c *call) error {
	panic(fmt.Sprintf("mock: %s was told to panic", c.method))
}

func makeDelay(arguments []string) (effect, error) {
	d, err := needDuration(arguments)
	return effect{before: func(ctx context.Context, _ *call) error { return sleep(ctx, d) }}, err
}

func hangs(ctx context.Context, _ *call) error {
	<-ctx.Done()
	return ctx.Err()
}

// makeIgnoreCancel makes the call go on for a while after it was cancelled.
func makeIgnoreCancel(arguments []string) (effect, error) {
	d, err := needDuration(arguments)
	return effect{context: func(ctx context.Context) (context.Context, context.CancelFunc) {
		deaf, cancel := context.WithCancel(context.WithoutCancel(ctx))
		stop := context.AfterFunc(ctx, func() { time.AfterFunc(d, cancel) })
		return deaf, func() { stop(); cancel() }
	}}, err
}

func makeCrash(at moment) func([]string) (effect, error) {
	return func(arguments []string) (effect, error) {
		code, err := codeAt(arguments, 0, 2)
		return at(func(_ context.Context, c *call) error {
			fmt.Fprintf(c.faulty.stderr, "mock: %s was told to crash the plugin\n", c.method)
			c.faulty.exit(code)
			return provider.Errorf(provider.CodeInternal, "the plugin did not crash")
		}), err
	}
}

// makeStartExited makes the server exit at once and StartServer report it, instead of Ping.
func makeStartExited(arguments []string) (effect, error) {
	code, err := needCode(arguments)
	return effect{after: func(ctx context.Context, c *call) error {
		ref := started(c)
		log, err := c.faulty.cloud.endServer(ctx, ref, 0, code)
		if err != nil {
			return err
		}
		failure := provider.ServerExited(&code, log)
		failure.SandboxID = ref.SandboxID
		return failure
	}}, err
}

// makeDie makes the server exit some time after its start.
func makeDie(arguments []string) (effect, error) {
	in, err := needDuration(arguments[:min(1, len(arguments))])
	if err != nil {
		return effect{}, err
	}
	code, err := codeAt(arguments, 1, 1)
	return effect{after: func(ctx context.Context, c *call) error {
		_, err := c.faulty.cloud.endServer(ctx, started(c), in, code)
		return err
	}}, err
}

func started(c *call) provider.SandboxRef {
	request := c.request.(provider.StartServerRequest)
	return provider.SandboxRef{Owner: request.Owner, SandboxID: request.SandboxID}
}

func makePingExited(arguments []string) (effect, error) {
	code, err := needCode(arguments)
	return effect{before: func(_ context.Context, c *call) error {
		return answerPing(c, exited(code, []string{"mock server: fatal: told to die"}))
	}}, err
}

func verdict(status provider.PingStatus) func([]string) (effect, error) {
	return plain(effect{before: func(_ context.Context, c *call) error {
		reason := fmt.Sprintf("mock: ping was told to answer %s", status)
		return answerPing(c, provider.PingResult{Status: status, Reason: reason})
	}})
}

func answerPing(c *call, result provider.PingResult) error {
	*c.reply.(*provider.PingResult) = result
	c.answered = true
	return nil
}

func badID(_ context.Context, c *call) error {
	c.reply.(*provider.Sandbox).ID = ""
	return nil
}

func badURL(_ context.Context, c *call) error {
	c.reply.(*provider.Endpoints).Server.URL = "nowhere"
	return nil
}

// makeLag makes List outdated: new sandboxes are missing, and destroyed ones still appear.
func makeLag(arguments []string) (effect, error) {
	lag, err := needDuration(arguments)
	if lag > tombstoneLife {
		return effect{}, fmt.Errorf("the lag can be %s at most", tombstoneLife)
	}
	return effect{before: func(ctx context.Context, c *call) error {
		list, err := c.faulty.cloud.listAsOf(ctx, c.request.(provider.ListRequest), time.Now().Add(-lag))
		*c.reply.(*[]provider.Sandbox) = list
		c.answered = true
		return err
	}}, err
}

// longLine is longer than most readers of lines accept, in bytes.
const longLine = 200 << 10

// stderrNoise writes what is known to upset readers of a plugin's log.
func stderrNoise(_ context.Context, c *call) error {
	for _, line := range []string{
		`{"@message":42}`,
		`{"@message":"mock: odd level","@level":7}`,
		`{"@message":"mock: odd time","@timestamp":{}}`,
		`{"@level":"error"`,
		"",
		"\xff\xfe mock: not UTF-8",
		"\x1b[31mmock: red\x1b[0m\r",
		"mock: " + strings.Repeat("x", longLine),
	} {
		fmt.Fprintln(c.faulty.stderr, line)
	}
	return nil
}

// stdoutNoise writes to the stream of the handshake. It blocks if nobody reads.
func stdoutNoise(_ context.Context, c *call) error {
	fmt.Fprintf(c.faulty.stdout, "mock: noise on standard output\n1|2|3|4|5|6\n%s\n", strings.Repeat("x", longLine))
	return nil
}

// makeFork starts a child that keeps the plugin's standard error open, and that the plugin does not wait for. It is in
// the plugin's process group or, as a daemon, in its own session. It exits by itself.
func makeFork(daemon bool) func([]string) (effect, error) {
	return func(arguments []string) (effect, error) {
		d, err := durationAt(arguments, 0, 30*time.Second)
		return effect{before: func(ctx context.Context, c *call) error {
			child := exec.CommandContext(context.WithoutCancel(ctx), "sleep", strconv.FormatFloat(d.Seconds(), 'f', 3, 64))
			child.Stderr = c.faulty.stderr
			child.SysProcAttr = &syscall.SysProcAttr{Setsid: daemon}
			if err := child.Start(); err != nil {
				return err
			}
			fmt.Fprintf(c.faulty.stderr, "mock: forked process %d for %s\n", child.Process.Pid, d)
			c.faulty.children.Go(func() { _ = child.Wait() }) // its exit code means nothing
			return nil
		}}, err
	}
}

// leakSecret logs the key in the ways in which plugins do by mistake.
func leakSecret(_ context.Context, c *call) error {
	key := c.faulty.cloud.config.APIKey
	fmt.Fprintf(c.faulty.stderr, "mock: calling the cloud with api_key=%s\n", key)
	c.faulty.log.Error("mock: request refused", "headers", map[string]string{"Authorization": "Bearer " + key},
		"url", "https://mock.invalid/?key="+url.QueryEscape(key), "body", fmt.Sprintf("{%q: %+q}", "key", key),
		"basic", []string{base64.StdEncoding.EncodeToString([]byte("mock:" + key))}, "cut", key[:len(key)*3/4]+"...")
	return nil
}
