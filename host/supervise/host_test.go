package supervise

import (
	"bufio"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/berth-dev/berth/shared/provider"
)

func TestAPluginDoesNotOutliveAHostThatIsKilled(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ name, behaviour string }{
		{"AsItNoticesTheEndOfItsInput", ""},
		{"EvenIfItIgnoresItsInput", "ignore-stdin"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			if c.behaviour != "" && runtime.GOOS != "linux" {
				t.Skip("only Linux kills a plugin that does not notice its host's end")
			}
			sockets, err := os.MkdirTemp("/tmp", "b")
			if err != nil {
				t.Fatal(err)
			}
			defer os.RemoveAll(sockets) // the killed host could not
			host := exec.Command(os.Args[0])
			host.Env = append(os.Environ(), hostVariable+"="+stubPath(t), "STUB="+c.behaviour, "XDG_RUNTIME_DIR="+sockets)
			stdout, err := host.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := host.Start(); err != nil {
				t.Fatal(err)
			}
			line, err := bufio.NewReader(stdout).ReadString('\n')
			pid, _ := strconv.Atoi(strings.TrimSpace(line))
			if err != nil || pid == 0 || !alive(pid) {
				t.Fatalf("the host said %q, %v", line, err)
			}
			host.Process.Kill()
			host.Wait()
			eventually(t, "the plugin is gone", func() bool { return !alive(pid) })
		})
	}
}

func TestAPluginUnderADebuggerIsUsedAndLeftAlone(t *testing.T) {
	t.Parallel()
	debugged := exec.Command(stubPath(t), "--debug")
	stderr, err := debugged.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := debugged.Start(); err != nil {
		t.Fatal(err)
	}
	defer debugged.Wait()
	defer debugged.Process.Signal(os.Interrupt)
	var socket string
	for lines := bufio.NewScanner(stderr); socket == "" && lines.Scan(); {
		_, socket, _ = strings.Cut(lines.Text(), provider.ReattachVariable+"=stub=")
	}
	if socket == "" {
		t.Fatal("the plugin did not say where it serves")
	}
	for range 2 { // two hosts, one after the other, use one plugin
		p := newPlugin(t, func(s *Spec) { s.Path, s.MTLS, s.Reattach = "/nowhere", true, socket })
		if pid := ask(t, p, "pid"); pid != strconv.Itoa(debugged.Process.Pid) || p.Pid() != 0 {
			t.Errorf("answered by process %s instead of %d", pid, debugged.Process.Pid)
		}
		start := time.Now()
		if err := p.Stop(testContext(t)); err != nil || time.Since(start) > patience/2 {
			t.Errorf("Stop took %s: %v", time.Since(start), err)
		}
	}
	if !alive(debugged.Process.Pid) {
		t.Error("the plugin was ended")
	}
}
