package supervise

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"

	"github.com/berth-dev/berth/shared/provider"
)

func TestAPluginOfProtocol2OnlyIsRefusedInOneLine(t *testing.T) {
	t.Parallel()
	_, err := newStub(t, "protocol:2").Describe(testContext(t))
	e := wantError(t, err, provider.CodeUnreachable, provider.ReasonPluginFailed)
	want := `plugin "acme" did not start: it speaks version 2 of the plugin protocol, this host speaks version 1: ` +
		"update the older of the two"
	if e.Error() != want || len(e.LogTail) > 0 {
		t.Errorf("%s\n%s", e.Error(), strings.Join(e.LogTail, "\n"))
	}
}

func TestAPluginOfProtocols1And2Works(t *testing.T) {
	t.Parallel()
	ask(t, newStub(t, "protocol:1,2"), "pid")
}

func TestTheProtocolDocumentTellsWhatThisHostDoes(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../docs/plugin-protocol.md")
	if err != nil {
		t.Fatal(err)
	}
	document := strings.Join(strings.Fields(string(text)), " ") // ignore line breaks
	for _, variable := range slices.Concat(inherited, []string{certificateVariable, plugin.EnvUnixSocketDir}) {
		if !strings.Contains(document, "`"+variable+"`") {
			t.Errorf("it does not name the variable %s", variable)
		}
	}
	for _, fact := range []string{
		fmt.Sprintf("together may take %.0f s", defaultStartTimeout.Seconds()),
		fmt.Sprintf("every %.0f s and kills a plugin that gives no answer three times in a row, each within %.0f s",
			defaultLimits.healthPeriod.Seconds(), defaultLimits.healthTimeout.Seconds()),
		fmt.Sprintf("process group %.0f s after `Shutdown` is killed", defaultLimits.stopGrace.Seconds()),
		fmt.Sprintf("at most %d KiB a line", maxLine>>10), fmt.Sprintf("its last %d lines", tailLines),
	} {
		if !strings.Contains(document, fact) {
			t.Errorf("it does not say %q", fact)
		}
	}
}

// The following tests are about future hosts and today's SDK.

func TestAHostOfProtocol2OnlyGetsOneLineFromThePlugin(t *testing.T) {
	t.Parallel()
	stub := exec.Command(stubPath(t))
	stub.Env = append(laterHost("", "2"), "BERTH_PLUGIN=berth-provider")
	var stdout, stderr bytes.Buffer
	stub.Stdout, stub.Stderr = &stdout, &stderr
	_ = stub.Run()
	want := `the plugin "stub" 1.2.3 speaks version 1 of the plugin protocol, this host speaks version 2: update the older of the two`
	if code := stub.ProcessState.ExitCode(); code != 1 || stderr.String() != want+"\n" {
		t.Errorf("exit code %d, %q", code, stderr.String())
	}
	// A host that compares the versions by itself still receives this side's.
	if stdout.String() != "1|1|unix||grpc\n" {
		t.Errorf("it printed %q", stdout.String())
	}

	_, _, err := connectAs(t, "", 2)
	if err == nil || !strings.Contains(err.Error(), "Plugin version: 1, Client versions: [2]") {
		t.Errorf("go-plugin makes of it: %v", err)
	}
}

func TestHostAndPluginMeetOnTheHighestVersionOfBoth(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		plugin string
		host   []int
		common int
	}{
		{"", []int{1, 2}, 1},
		{"protocol:1,2", []int{1}, 1},
		{"protocol:1,2", []int{1, 2}, 2},
		{"protocol:1,2", []int{2}, 2},
		{"protocol:2", []int{1, 2}, 2},
	} {
		client, version, err := connectAs(t, c.plugin, c.host...)
		if err != nil || version != c.common {
			t.Errorf("host %v and plugin %q meet on %d: %v", c.host, c.plugin, version, err)
			continue
		}
		if version == 1 {
			dispensed, err := client.Dispense(provider.PluginName)
			if err != nil {
				t.Fatal(err)
			}
			if d, err := dispensed.(*provider.Client).Describe(testContext(t)); err != nil || d.Name != "stub" {
				t.Errorf("Describe: %+v, %v", d, err)
			}
		}
	}
}

func TestAHostThatOffersNoVersionsGetsProtocol1(t *testing.T) {
	t.Parallel()
	sockets, err := os.MkdirTemp("/tmp", "b")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(sockets)
	stub := exec.Command(stubPath(t))
	stub.Env = append(laterHost("", ""), "BERTH_PLUGIN=berth-provider", "PLUGIN_UNIX_SOCKET_DIR="+sockets)
	stdin, err := stub.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := stub.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := stub.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil || !strings.HasPrefix(line, "1|1|unix|"+sockets) {
		t.Errorf("handshake %q, %v", line, err)
	}
	stdin.Close()
	if err := stub.Wait(); err != nil {
		t.Error(err)
	}
}

func laterHost(behaviour, versions string) []string {
	return []string{"GORACE=atexit_sleep_ms=0", "STUB=" + behaviour, "PLUGIN_PROTOCOL_VERSIONS=" + versions}
}

// connectAs connects as a host, made of go-plugin alone, that speaks the given protocol versions. It has no calls for
// version 2.
func connectAs(t *testing.T, behaviour string, versions ...int) (_ plugin.ClientProtocol, version int, _ error) {
	t.Helper()
	sets := map[int]plugin.PluginSet{}
	for _, v := range versions {
		sets[v] = plugin.PluginSet{provider.PluginName: laterPlugin{}}
		if v == provider.ProtocolVersion {
			sets[v] = provider.ClientPlugins()[v]
		}
	}
	// go-plugin passes on its own standard input, which another test writes to. The stub gets a separate one that does
	// not end.
	input := filepath.Join(t.TempDir(), "input")
	if err := syscall.Mkfifo(input, 0o600); err != nil {
		t.Fatal(err)
	}
	stub := exec.Command("/bin/sh", "-c", `exec "$0" <>"$1"`, stubPath(t), input)
	stub.Env = []string{"GORACE=atexit_sleep_ms=0", "STUB=" + behaviour, "TMPDIR=" + os.TempDir()}
	host := plugin.NewClient(&plugin.ClientConfig{
		Cmd: stub, HandshakeConfig: provider.Handshake(), VersionedPlugins: sets, SkipHostEnv: true, StartTimeout: patience,
		AllowedProtocols: []plugin.Protocol{plugin.ProtocolGRPC},
		Logger:           hclog.New(&hclog.LoggerOptions{Output: io.Discard}),
	})
	t.Cleanup(host.Kill)
	client, err := host.Client()
	return client, host.NegotiatedVersion(), err
}

type laterPlugin struct{ plugin.NetRPCUnsupportedPlugin }

func (laterPlugin) GRPCServer(*plugin.GRPCBroker, *grpc.Server) error { return nil }

func (laterPlugin) GRPCClient(context.Context, *plugin.GRPCBroker, *grpc.ClientConn) (any, error) {
	return nil, nil
}
