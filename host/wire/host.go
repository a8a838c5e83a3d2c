package wire

import "github.com/berth-dev/berth/shared/provider"

// Version is what berth itself is.
type Version struct {
	Version  string `json:"version"`
	Protocol int    `json:"protocol"`
	Go       string `json:"go"`
	Platform string `json:"platform"`
}

// Config is a configuration without mistakes.
type Config struct {
	Config    string `json:"config"`
	Providers int    `json:"providers"`
	OK        bool   `json:"ok"`
}

// Check is the outcome of one check of an installation.
type Check struct {
	Check string `json:"check"`
	OK    bool   `json:"ok"`
	// Warning is whether something should be mended although it works.
	Warning bool     `json:"warning,omitempty"`
	Detail  string   `json:"detail" foreign:"text"`
	Error   *Failure `json:"error,omitempty"`
}

// Checks are all checks of an installation.
type Checks struct {
	Checks []Check `json:"checks"`
}

// Plugin is a plugin as a provider block or a plugin directory names it. What the plugin says of itself is absent when it
// was not run.
type Plugin struct {
	Name     string `json:"name"`
	Plugin   string `json:"plugin,omitempty"`
	Version  string `json:"version,omitempty"`
	Protocol int    `json:"protocol,omitempty"`
	Path     string `json:"path"`
	SHA256   string `json:"sha256,omitempty"`
	// Checksum is how SHA256 compares with what is trusted, absent when any binary is.
	Checksum string `json:"checksum,omitempty"`
	// ShadowedBy is the executable that is run instead.
	ShadowedBy   string                `json:"shadowed_by,omitempty"`
	Capabilities []provider.Capability `json:"capabilities,omitempty"`
	Error        *Failure              `json:"error,omitempty"`
}

// Describe takes over what the plugin says of itself.
func (p *Plugin) Describe(d provider.Description) {
	p.Plugin, p.Version, p.Protocol, p.Capabilities = d.Name, d.Version, provider.ProtocolVersion, d.Capabilities
}

// Plugins is a list of plugins.
type Plugins struct {
	Plugins []Plugin `json:"plugins"`
}

// Description is what a plugin is, can do, and can be told.
type Description struct {
	Name         string                `json:"name"`
	Version      string                `json:"version"`
	Protocol     int                   `json:"protocol"`
	Summary      string                `json:"summary" foreign:"text"`
	Capabilities []provider.Capability `json:"capabilities"`
	Attributes   []Attribute           `json:"attributes"`
}

// Attribute is one setting of a plugin.
type Attribute struct {
	Name      string                 `json:"name"`
	Type      provider.AttributeType `json:"type"`
	Required  bool                   `json:"required"`
	Sensitive bool                   `json:"sensitive"`
	// Default is JSON, absent when there is none.
	Default string   `json:"default,omitempty" foreign:"text"`
	Env     []string `json:"env,omitempty"`
	OneOf   []string `json:"one_of,omitempty"`
	Doc     string   `json:"doc" foreign:"text"`
}

// NewDescription returns the Description of what a plugin says of itself.
func NewDescription(d provider.Description) Description {
	w := Description{
		Name: d.Name, Version: d.Version, Protocol: provider.ProtocolVersion, Summary: d.Summary,
		Capabilities: append([]provider.Capability{}, d.Capabilities...), Attributes: []Attribute{},
	}
	for _, attribute := range d.Attributes {
		w.Attributes = append(w.Attributes, Attribute(attribute))
	}
	return w
}

// Lock is a lock file that was brought up to date.
type Lock struct {
	Lock    string       `json:"lock"`
	Plugins []LockChange `json:"plugins"`
}

// LockChange is what became of one plugin in a lock file.
type LockChange struct {
	Name    string `json:"name"`
	Version string `json:"version,omitempty"`
	SHA256  string `json:"sha256,omitempty"`
	// Was is the checksum before.
	Was string `json:"was,omitempty"`
	// Change is added, changed, unchanged or removed.
	Change string `json:"change"`
}

// NewPlugin is a plugin that was begun.
type NewPlugin struct {
	Name   string `json:"name"`
	Dir    string `json:"dir"`
	Module string `json:"module"`
	SDK    string `json:"sdk"`
}
