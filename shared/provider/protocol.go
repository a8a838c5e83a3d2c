package provider

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/hashicorp/go-plugin"
)

// protocolsVariable is where a host says which versions of the contract it speaks, separated by commas.
const protocolsVariable = "PLUGIN_PROTOCOL_VERSIONS"

// refuseOtherProtocols ends the process when the host does not speak the version of the contract that this SDK does. It
// tells people in a line on standard error, and the host in a handshake that names the version and no address.
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
