package supervise

import (
	"os"
	"os/exec"
	"strconv"
	"testing"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-plugin"

	"github.com/berth-dev/berth/shared/provider"
)

// BenchmarkStart measures the start of a plugin, its configuration, its first answer and the stop.
func BenchmarkStart(b *testing.B) {
	stubPath(b) // builds it
	for _, mtls := range []bool{false, true} {
		b.Run("mtls="+strconv.FormatBool(mtls), func(b *testing.B) {
			for b.Loop() {
				p := newPlugin(b, func(s *Spec) { s.MTLS = mtls })
				if _, err := p.Ping(b.Context(), provider.PingRequest{}); err != nil {
					b.Fatal(err)
				}
				p.Stop(b.Context())
			}
		})
	}
}

// BenchmarkPing compares a call through a Plugin with one through go-plugin alone.
func BenchmarkPing(b *testing.B) {
	b.Run("supervised", func(b *testing.B) {
		benchmarkPing(b, newPlugin(b, nil))
	})
	b.Run("bare", func(b *testing.B) {
		command := exec.Command(stubPath(b))
		command.Env = os.Environ()
		client := plugin.NewClient(&plugin.ClientConfig{
			HandshakeConfig: provider.Handshake(), VersionedPlugins: provider.ClientPlugins(),
			AllowedProtocols: []plugin.Protocol{plugin.ProtocolGRPC}, Cmd: command, Logger: hclog.NewNullLogger(),
		})
		defer client.Kill()
		protocol, err := client.Client()
		if err != nil {
			b.Fatal(err)
		}
		raw, err := protocol.Dispense(provider.PluginName)
		if err != nil {
			b.Fatal(err)
		}
		bare := raw.(*provider.Client)
		if err := bare.Configure(b.Context(), []byte(`{}`)); err != nil {
			b.Fatal(err)
		}
		benchmarkPing(b, bare)
	})
}

func benchmarkPing(b *testing.B, p provider.Provider) {
	for b.Loop() {
		if _, err := p.Ping(b.Context(), provider.PingRequest{}); err != nil {
			b.Fatal(err)
		}
	}
}
