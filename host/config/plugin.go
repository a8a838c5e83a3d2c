package config

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/hashicorp/hcl/v2"
	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/convert"
	ctyjson "github.com/zclconf/go-cty/cty/json"

	"github.com/berth-dev/berth/host/printable"
	"github.com/berth-dev/berth/shared/provider"
)

// CheckPlugin reports, at the provider block, that there is no executable at p.Path, and which plugins are installed.
func (p *Provider) CheckPlugin() hcl.Diagnostics {
	if executable(p.Path) {
		return nil
	}
	dirs := []string{filepath.Dir(p.Path)}
	if p.found {
		dirs = p.config.PluginDirs()
	}
	wanted, usual := strings.CutPrefix(filepath.Base(p.Path), PluginPrefix)
	missing := fmt.Sprintf("There is no executable file %s.", p.Path)
	if len(dirs) > 1 {
		missing = fmt.Sprintf("There is no executable file %s%s in %s.", PluginPrefix, wanted, strings.Join(dirs, ", "))
	}
	var installed []string
	for _, plugin := range installedIn(dirs) {
		if plugin.ShadowedBy == "" {
			installed = append(installed, plugin.Name)
		}
	}
	where := "in this directory"
	if len(dirs) > 1 {
		where = "in these directories"
	}
	found := fmt.Sprintf("There are no plugins %s.", where)
	if len(installed) > 0 {
		found = fmt.Sprintf("Plugins %s: %s.", where, strings.Join(installed, ", "))
	}
	if usual {
		found += DidYouMean(wanted, installed)
	}
	return p.config.finish(hcl.Diagnostics{mistake("Unknown plugin", p.named, "%s %s", missing, found)})
}

// PluginConfig evaluates the config block, given the plugin's description, and returns the JSON for its Configure call.
// A value comes from the block, else from the environment variables that the plugin names, else from the plugin's
// default. Secret values are added to Config.Secrets.
func (p *Provider) PluginConfig(description provider.Description) ([]byte, hcl.Diagnostics) {
	schema := &hcl.BodySchema{}
	for _, a := range description.Attributes {
		schema.Attributes = append(schema.Attributes, hcl.AttributeSchema{Name: a.Name})
	}
	content, diagnostics := p.body.Content(schema)
	values := map[string]json.RawMessage{}
	fromEnv := map[string]string{}
	for _, a := range description.Attributes {
		value, variable, problems := p.attribute(a, content.Attributes[a.Name])
		diagnostics = append(diagnostics, problems...)
		if value != nil {
			values[a.Name] = value
		}
		if variable != "" {
			fromEnv[a.Name] = variable
		}
	}
	p.config.mutex.Lock()
	p.fromEnv = fromEnv
	p.config.mutex.Unlock()

	if diagnostics.HasErrors() {
		return nil, p.config.finish(diagnostics)
	}
	encoded, err := json.Marshal(values)
	if err != nil { // only if a default is not JSON
		return nil, p.config.finish(hcl.Diagnostics{
			mistake("Faulty plugin", p.named, "The plugin %q describes a default that is not JSON.", p.Plugin),
		})
	}
	return encoded, p.config.finish(diagnostics)
}

// Explain turns a plugin's refusal of its configuration into diagnostics, one for each refused attribute.
func (p *Provider) Explain(refusal *provider.Error) hcl.Diagnostics {
	if refusal == nil {
		return nil
	}
	if len(refusal.Fields) == 0 {
		return p.config.finish(hcl.Diagnostics{mistake("Configuration refused", p.bodyRange,
			"The plugin %q says: %s", p.Plugin, printable.Line(sentence(refusal.Error())))})
	}
	p.config.mutex.Lock()
	fromEnv := p.fromEnv
	p.config.mutex.Unlock()

	var diagnostics hcl.Diagnostics
	for _, field := range refusal.Fields {
		subject, origin := p.bodyRange, ""
		if attribute, given := p.body.Attributes[field.Field]; given {
			subject = attribute.Expr.Range()
		}
		if variable := fromEnv[field.Field]; variable != "" {
			origin = fmt.Sprintf(" Its value came from the environment variable %s.", variable)
		}
		diagnostics = append(diagnostics, mistake("Configuration refused", subject,
			"The plugin %q says of %q: %s%s", p.Plugin, field.Field, printable.Line(sentence(field.Message)), origin))
	}
	return p.config.finish(diagnostics)
}

// attribute returns an attribute's value as JSON, or nil if it has none, and the environment variable it came from.
func (p *Provider) attribute(
	a provider.Attribute, given *hcl.Attribute,
) (value json.RawMessage, variable string, _ hcl.Diagnostics) {
	k, known := kindOf(a.Type)
	if !known {
		return nil, "", hcl.Diagnostics{mistake("Faulty plugin", p.named,
			"The plugin %q describes the attribute %q with the type %q, which this berth does not know. A newer berth may.",
			p.Plugin, a.Name, a.Type)}
	}
	if given != nil {
		p.config.show(given.Expr.Range(), !a.Sensitive)
		v, diagnostics := p.config.evaluate(given, k)
		if diagnostics.HasErrors() {
			return nil, "", diagnostics
		}
		if !v.IsNull() {
			if a.Sensitive {
				p.config.noteSecret(given)
			}
			value, problem := p.accept(a, v)
			if problem != "" {
				return nil, "", hcl.Diagnostics{unacceptable(given, problem)}
			}
			return value, "", nil
		}
	}
	for _, variable := range a.Env {
		text, _ := p.config.getenv(variable)
		if text == "" {
			continue
		}
		v, err := fromText(text, a.Type, k)
		problem := "must be " + k.name
		if err == nil {
			value, problem = p.accept(a, v)
		}
		if problem != "" {
			return nil, "", hcl.Diagnostics{mistake("Unacceptable value", p.bodyRange,
				"%q %s Its value comes from the environment variable %s.", a.Name, sentence(problem), variable)}
		}
		return value, variable, nil
	}
	if a.Required {
		remedy := "Set it in the config block"
		if len(a.Env) > 0 {
			remedy += ", or set the environment variable " + strings.Join(a.Env, " or ")
		}
		return nil, "", hcl.Diagnostics{
			mistake("Missing value", p.bodyRange, "The plugin %q requires %q. %s.", p.Plugin, a.Name, remedy),
		}
	}
	if a.Default == "" {
		return nil, "", nil
	}
	return json.RawMessage(a.Default), "", nil
}

// accept checks a value against the plugin's rules beyond the type, and encodes it.
func (p *Provider) accept(a provider.Attribute, value cty.Value) (_ json.RawMessage, problem string) {
	if a.Sensitive {
		p.config.Secrets.Add(allText(value)...)
	}
	switch a.Type {
	case provider.TypeDuration:
		if d, err := time.ParseDuration(value.AsString()); err != nil || d < 0 {
			return nil, "must be " + durationForm
		}
	case provider.TypeInteger:
		if _, exact := value.AsBigFloat().Int64(); !value.AsBigFloat().IsInt() || exact != 0 {
			return nil, "must be a whole number"
		}
	case provider.TypeString:
		if len(a.OneOf) > 0 {
			if problem := oneOf(a.OneOf...)(value.AsString()); problem != "" {
				return nil, problem
			}
		}
	}
	encoded, err := ctyjson.Marshal(value, value.Type())
	if err != nil {
		return nil, "cannot be passed on to the plugin"
	}
	return encoded, ""
}

func kindOf(t provider.AttributeType) (kind, bool) {
	switch t {
	case provider.TypeString:
		return kindText, true
	case provider.TypeBool:
		return kindBool, true
	case provider.TypeInteger:
		return kindInteger, true
	case provider.TypeNumber:
		return kindNumber, true
	case provider.TypeDuration:
		return kindDuration, true
	case provider.TypeStringList:
		return kindTexts, true
	case provider.TypeStringMap:
		return kindTextMap, true
	}
	return kind{}, false
}

// fromText converts an environment variable to the kind's type. Lists and maps are JSON.
func fromText(text string, t provider.AttributeType, k kind) (cty.Value, error) {
	if t == provider.TypeStringList || t == provider.TypeStringMap {
		return ctyjson.Unmarshal([]byte(text), k.cty)
	}
	return convert.Convert(cty.StringVal(text), k.cty)
}
