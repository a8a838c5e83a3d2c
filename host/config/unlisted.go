package config

import (
	"time"

	"github.com/hashicorp/hcl/v2/hclsyntax"
)

// Unlisted returns a provider for a plugin that the configuration does not mention, as if it had an empty block. Its
// attributes come from the environment variables it names, and from its defaults. It is not added to c.Providers.
func (c *Config) Unlisted(plugin, path string) *Provider {
	server, _ := resolveServer(c.server, serverSettings{})
	return &Provider{
		Label: plugin, Plugin: plugin, Path: path,
		MTLS: true, StartTimeout: 10 * time.Second, Lifetime: time.Hour,
		Server: server, Health: c.health, Limits: c.limits,
		config: c, unlisted: true, def: c.fallback, named: c.fallback,
		body: &hclsyntax.Body{SrcRange: c.fallback, EndRange: c.fallback}, bodyRange: c.fallback,
	}
}
