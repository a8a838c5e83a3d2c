package provider

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/hashicorp/go-plugin"
)

// protocolsVariable is the environment variable with the host's versions of the contract, separated by commas.
const protocolsVariable = "PLUGIN_PROTOCOL_VERSIONS"

// refuseOtherProtocols exits the process if the host does not support this SDK's version of the contract. It writes one
// line for people to standard error, and for the host a handshake with the version and no address.
func refuseOtherProtocols(info Info) {
	offered := os.Getenv(protocolsVariable)
	versions := strings.Split(offered, ",")
	if offered == "" || slices.Contains(versions, strconv.Itoa(ProtocolVersion)) {
		return
	}
	fmt.Fprintf(os.Stderr, "the plugin %q %s speaks version %d of the plugin protocol, this host speaks version %s: "+
		"update the older of the two\n", info.Name, info.Version, ProtocolVersion, strings.Join(versions, ", "))
	fmt.Printf("%d|%d|unix||%s\n", plugin.CoreProtocolVersion, ProtocolVersion, plugin.ProtocolGRPC)
	os.Exit(1)
}
