package supervise

import (
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
)

func TestAnAddressOnlyOfThisMachineIsConnectedTo(t *testing.T) {
	t.Parallel()
	for address, want := range map[string]bool{
		"127.0.0.1:1234": true, "127.8.9.1:1": true, "[::1]:1234": true, "[::ffff:127.0.0.1]:1234": true,
		"0.0.0.0:1234": false, "[::]:1234": false, "192.0.2.1:1234": false, "[::ffff:192.0.2.1]:1234": false, "localhost:1234": false,
		"127.0.0.1.example.com:1234": false, "127.1:1234": false, "127.0.0.1": false, "127.0.0.1:0": false, "127.0.0.1:65536": false,
		"127.0.0.1:http": false, "": false, "unix:/x": false, "[::1%eth0]:1": true,
	} {
		if got := onLoopback(address); got != want {
			t.Errorf("%s: got %t", address, got)
		}
	}
}

func FuzzHandshake(f *testing.F) {
	f.Add("1|1|unix|/run/berth/plugin|grpc", false)
	f.Add("1|1|tcp|127.0.0.1:1|grpc|"+strings.Repeat("A", 60), true)
	f.Add("\x1b[2J|||\n", true)
	f.Add("1|\x00|unix|/x|grpc", false)
	f.Fuzz(func(t *testing.T, line string, mtls bool) {
		problem := handshakeProblem(line, mtls)
		if strings.ContainsAny(problem, "\x1b\n\r\x00") || len(problem) > 2000 {
			t.Errorf("the problem is not fit to be shown: %q", problem)
		}
		parts := strings.Split(strings.TrimSpace(line), "|")
		if problem != "" || len(parts) < 4 {
			return
		}
		p := &process{dir: "/run/berth", mtls: mtls}
		network, address, err := p.PluginToHost(parts[2], parts[3])
		if err != nil {
			if strings.ContainsAny(err.Error(), "\x1b\n\r\x00") || len(err.Error()) > 2000 {
				t.Errorf("the error is not fit to be shown: %q", err)
			}
			return
		}
		at, notNumbers := netip.ParseAddrPort(address)
		switch {
		case network == "unix" && filepath.Dir(address) == "/run/berth":
		case network == "tcp" && mtls && notNumbers == nil && at.Addr().Unmap().IsLoopback():
		default:
			t.Errorf("%s %q is connected to", network, address)
		}
	})
}
