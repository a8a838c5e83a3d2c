package provider

import (
	"context"

	"github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"
)

// ProtocolVersion is the version of the wire contract that this SDK implements.
const ProtocolVersion = 1

// PluginName is the name under which a provider is dispensed.
const PluginName = "provider"

// MaxMessageBytes bounds every message, both ways.
const MaxMessageBytes = 16 << 20

// Handshake lets a plugin recognise that a host started it. It is not a secret.
func Handshake() plugin.HandshakeConfig {
	return plugin.HandshakeConfig{
		ProtocolVersion:  ProtocolVersion,
		MagicCookieKey:   "BERTH_PLUGIN",
		MagicCookieValue: "berth-provider",
	}
}

// ClientPlugins is the plugin set of a host, by protocol version: dispensing PluginName returns a *Client.
func ClientPlugins() map[int]plugin.PluginSet {
	return pluginSets(nil)
}

func pluginSets(server *pluginServer) map[int]plugin.PluginSet {
	return map[int]plugin.PluginSet{ProtocolVersion: {PluginName: &grpcPlugin{server: server}}}
}

// grpcPlugin adapts the contract to go-plugin.
type grpcPlugin struct {
	plugin.NetRPCUnsupportedPlugin
	server *pluginServer
}

func (p *grpcPlugin) GRPCServer(_ *plugin.GRPCBroker, s *grpc.Server) error {
	p.server.register(s)
	return nil
}

func (p *grpcPlugin) GRPCClient(_ context.Context, _ *plugin.GRPCBroker, conn *grpc.ClientConn) (any, error) {
	return NewClient(conn), nil
}
