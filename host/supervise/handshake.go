package supervise

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/hashicorp/go-plugin"

	"github.com/berth-dev/berth/host/printable"
	"github.com/berth-dev/berth/shared/provider"
)

// handshakeProblem returns what is wrong with a plugin's handshake line,
//
//	core protocol | plugin protocol | network | address | "grpc" | certificate
//
// or "" if it is in order. go-plugin notices most problems too, but its messages do not help users.
func handshakeProblem(line string, mtls bool) string {
	parts := strings.Split(strings.TrimSpace(line), "|")
	if len(parts) < 4 {
		return fmt.Sprintf("the first line on its standard output is not a handshake but %.200q: "+
			"a plugin prints nothing before the handshake and logs to standard error", strings.TrimSpace(line))
	}
	core, version := parts[0], parts[1]
	switch {
	case core != strconv.Itoa(plugin.CoreProtocolVersion):
		return fmt.Sprintf("its handshake has version %.20q of go-plugin's core protocol, this host speaks version %d",
			core, plugin.CoreProtocolVersion)
	case version != strconv.Itoa(provider.ProtocolVersion):
		return fmt.Sprintf("it speaks version %.20s%s %d: update the older of the two", printable.Line(version), otherProtocol,
			provider.ProtocolVersion)
	case len(parts) < 5 || parts[4] != string(plugin.ProtocolGRPC):
		return "it does not speak gRPC"
	case mtls && (len(parts) < 6 || len(parts[5]) < minCertificate):
		return "it ignores mTLS, which is on for this plugin: set `mtls = false` in its provider block to run it " +
			"without, with its socket protected by file permissions alone"
	}
	return ""
}

// otherProtocol marks the problem of a plugin that speaks another version of the plugin protocol.
const otherProtocol = " of the plugin protocol, this host speaks version"

// minCertificate is shorter than any certificate, and longer than what old plugins put in its place.
const minCertificate = 50

// PluginToHost returns the address to connect to, and an error unless it is safe to send API keys there.
func (p *process) PluginToHost(network, address string) (string, string, error) {
	switch {
	case network == "unix" && filepath.Dir(address) == p.dir:
		return network, address, nil
	case network == "unix":
		return "", "", fmt.Errorf("its socket %.200s is outside the directory it was given in %s", printable.Line(address), plugin.EnvUnixSocketDir)
	case network == "tcp" && p.mtls && onLoopback(address):
		return network, address, nil
	case network == "tcp" && p.mtls:
		return "", "", fmt.Errorf("it listens on tcp %.80q, which is not an address of this machine's loopback interface: it must "+
			"listen on a unix socket in the directory named by %s", address, plugin.EnvUnixSocketDir)
	case network == "tcp":
		return "", "", fmt.Errorf("it listens on tcp %.80s without mTLS, where everybody on this machine can reach it: it must "+
			"listen on a unix socket in the directory named by %s, or use mTLS", printable.Line(address), plugin.EnvUnixSocketDir)
	}
	return "", "", fmt.Errorf("it listens on an unknown kind of network, %.40q", network)
}

// onLoopback reports whether a TCP address can only be that of a process on this machine. A name could be looked up
// elsewhere, so only numbers count.
func onLoopback(address string) bool {
	at, err := netip.ParseAddrPort(address)
	return err == nil && at.Addr().Unmap().IsLoopback() && at.Port() != 0
}

// HostToPlugin returns the address unchanged: plugin and host share a machine.
func (p *process) HostToPlugin(network, address string) (string, string, error) {
	return network, address, nil
}
