package main

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/berth-dev/berth/internal/testbin"
)

// process is a running server, as built.
type process struct {
	*exec.Cmd
	url string
	// said is what it printed before the line with its address.
	said string
	rest io.Reader
}

// launch starts the binary with only env in its environment, and waits until it listens.
func launch(t *testing.T, env []string, args ...string) *process {
	t.Helper()
	p := &process{Cmd: exec.CommandContext(t.Context(), testbin.Build(t, "./examples/action-server"), args...)}
	p.Dir = t.TempDir()
	p.Env = append([]string{"PATH=" + os.Getenv("PATH")}, env...)
	stderr, err := p.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.Process.Kill()
		p.Wait()
	})
	lines := bufio.NewReader(stderr)
	p.rest = lines
	for {
		line, err := lines.ReadString('\n')
		if err != nil {
			t.Fatalf("it ended without listening: %s%s", p.said, line)
		}
		if address, ok := strings.CutPrefix(line, "listening on "); ok {
			p.url = strings.TrimSpace(address)
			return p
		}
		p.said += line
	}
}

// stop sends SIGTERM and expects a clean exit.
func (p *process) stop(t *testing.T) {
	t.Helper()
	if err := p.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	rest, _ := io.ReadAll(p.rest)
	if err := p.Wait(); err != nil {
		t.Errorf("after SIGTERM: %v: %s", err, rest)
	}
}

func TestTheProcessServesWithTheKeyOfItsEnvironmentAndHidesItFromCommands(t *testing.T) {
	t.Parallel()
	p := launch(t, []string{"SESSION_API_KEY=s3cret", "HOST=127.0.0.1", "PORT=0", "KEPT=yes"}, "--workdir", "made/here")
	if status, body := get(t, p.url+"/alive"); status != 200 || body["status"] != "ok" {
		t.Errorf("%d %v", status, body)
	}
	if status, _, err := post(t.Context(), p.url, runAction("true")); err != nil || status != http.StatusForbidden {
		t.Errorf("without the key: status %d, %v", status, err)
	}
	a := mustPost(t, p.url, runAction(`echo "$KEPT [$SESSION_API_KEY]"; pwd`), "X-Session-API-Key", "s3cret")
	if !strings.HasPrefix(a.Content, "yes []\n") || !strings.HasSuffix(a.Content, "/made/here") {
		t.Errorf("%q", a.Content)
	}
	p.stop(t)
}

func TestTheProcessListensEverywhereOnlyWithAKey(t *testing.T) {
	t.Parallel()
	open := launch(t, nil, "--port", "0")
	if !strings.HasPrefix(open.url, "http://127.0.0.1:") || !strings.Contains(open.said, "no SESSION_API_KEY") {
		t.Errorf("without a key: %q, %q", open.url, open.said)
	}
	open.stop(t)
	keyed := launch(t, []string{"SESSION_API_KEY=s3cret"}, "--port", "0")
	if !strings.HasPrefix(keyed.url, "http://0.0.0.0:") || keyed.said != "" {
		t.Errorf("with a key: %q, %q", keyed.url, keyed.said)
	}
	keyed.stop(t)
}

func TestBootDelayHoldsBackListeningAndInitDelayHoldsBackReadiness(t *testing.T) {
	t.Parallel()
	begin := time.Now()
	p := launch(t, nil, "--port=0", "--boot-delay=300ms", "--init-delay=1h")
	if took := time.Since(begin); took < 300*time.Millisecond {
		t.Errorf("it listened after %s", took)
	}
	if _, body := get(t, p.url+"/alive"); body["status"] != "not initialized" {
		t.Errorf("%v", body)
	}
	p.stop(t)
}

func TestSIGTERMEndsACommandUnderWayAndAnswersItsClient(t *testing.T) {
	t.Parallel()
	p := launch(t, nil, "--port=0")
	s := &server{workdir: t.TempDir()}
	redirect, begun, ended := watched(t, s)
	type reply struct {
		status int
		answer answer
		err    error
	}
	replies := make(chan reply)
	go func() {
		status, a, err := post(t.Context(), p.url, runAction(redirect+"sleep 600"))
		replies <- reply{status, a, err}
	}()
	begun()
	p.stop(t)
	r := <-replies
	meta := r.answer.Extras.Metadata
	if r.err != nil || r.status != 200 || meta.ExitCode != -1 || !strings.Contains(meta.Suffix, "stopped") {
		t.Errorf("%+v", r)
	}
	ended()
}

func TestAStopDuringTheBootDelayEndsTheWaitWithoutListening(t *testing.T) {
	t.Parallel()
	ctx, stop := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer stop()
	var stderr bytes.Buffer
	err := serve(ctx, options{host: "127.0.0.1", workdir: t.TempDir(), bootDelay: time.Hour}, &stderr)
	if err != nil || stderr.Len() > 0 {
		t.Errorf("%v: %s", err, &stderr)
	}
}

func TestWrongUsageExitsWith2AndSaysWhatIsWrong(t *testing.T) {
	t.Parallel()
	for want, args := range map[string][]string{
		"70000":         {"--port", "70000"},
		"four":          {"--port", "four"},
		"unexpected":    {"8000"},
		"no-such-thing": {"--no-such-thing"},
	} {
		var stderr bytes.Buffer
		if code := run(t.Context(), args, &stderr); code != 2 || !strings.Contains(stderr.String(), want) {
			t.Errorf("%v: exit %d: %s", args, code, &stderr)
		}
	}
}

func TestAPortInUseExitsWith1(t *testing.T) {
	t.Parallel()
	p := launch(t, nil, "--port=0")
	_, port, _ := strings.Cut(strings.TrimPrefix(p.url, "http://"), ":")
	var stderr bytes.Buffer
	args := []string{"--host=127.0.0.1", "--port", port, "--workdir", t.TempDir()}
	if code := run(t.Context(), args, &stderr); code != 1 || !strings.Contains(stderr.String(), "in use") {
		t.Errorf("exit %d: %s", code, &stderr)
	}
	p.stop(t)
}
