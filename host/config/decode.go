package config

import (
	"fmt"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/agext/levenshtein"
	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/gocty"

	"github.com/berth-dev/berth/host/connect"
)

// read parses one file and decodes everything but the config blocks. A file with syntax errors is not decoded, because
// diagnostics about the rest would be guesses.
func (c *Config) read(name string, source []byte) hcl.Diagnostics {
	body, diagnostics := c.parse(name, source)
	if diagnostics.HasErrors() {
		return diagnostics
	}
	c.fallback = body.MissingItemRange()
	content, more := c.decode(body, nil, "host", "state", "server", "health", "timeouts", "provider")
	diagnostics = append(diagnostics, more...)
	blocks := content.Blocks.ByType()

	diagnostics = append(diagnostics, c.decodeOnly(blocks["host"], c.hostArguments())...)
	diagnostics = append(diagnostics, c.decodeOnly(blocks["state"], c.stateArguments())...)
	diagnostics = append(diagnostics, c.decodeServer(blocks["server"], &c.server)...)
	diagnostics = append(diagnostics, c.decodeOnly(blocks["health"], healthArguments(&c.health))...)
	diagnostics = append(diagnostics, c.decodeOnly(blocks["timeouts"], limitArguments(&c.limits))...)

	providers := blocks["provider"]
	if len(providers) == 0 {
		builtin, _ := c.parse(builtinName, []byte(BuiltIn))
		providers = hcl.Blocks{builtin.Blocks[0].AsHCLBlock()}
	}
	seen := map[string]hcl.Range{}
	for _, block := range providers {
		p, more := c.decodeProvider(block)
		diagnostics = append(diagnostics, more...)
		if first, twice := seen[p.Label]; twice {
			diagnostics = append(diagnostics, mistake("Duplicate provider", block.LabelRanges[0],
				"There is a provider %q on line %d already. Labels must differ; two blocks may name the same plugin with "+
					"their plugin attribute.", p.Label, first.Start.Line))
			continue
		}
		seen[p.Label] = block.DefRange
		c.Providers = append(c.Providers, p)
	}
	return append(diagnostics, c.finishHost(blocks["host"])...)
}

func (c *Config) parse(name string, source []byte) (*hclsyntax.Body, hcl.Diagnostics) {
	f := &file{source: source, shown: map[hcl.Range]bool{}}
	c.files[name] = f
	parsed, diagnostics := hclsyntax.ParseConfig(source, name, hcl.InitialPos)
	if diagnostics.HasErrors() {
		return nil, c.syntaxMistakes(f, name, diagnostics)
	}
	f.body = parsed.Body.(*hclsyntax.Body)
	return f.body, diagnostics
}

// finishHost sets defaults that depend on other blocks, and checks references to them.
func (c *Config) finishHost(blocks hcl.Blocks) hcl.Diagnostics {
	at := func(attribute string) hcl.Range {
		if len(blocks) > 0 {
			if given, ok := blocks[0].Body.(*hclsyntax.Body).Attributes[attribute]; ok {
				return given.Expr.Range()
			}
		}
		return c.fallback
	}
	var diagnostics hcl.Diagnostics
	labels := c.labels()
	switch {
	case c.Host.DefaultProvider == "" && len(labels) == 1:
		c.Host.DefaultProvider = labels[0]
	case c.Host.DefaultProvider != "" && !slices.Contains(labels, c.Host.DefaultProvider):
		diagnostics = append(diagnostics, mistake("Unknown provider", at("provider"),
			"There is no provider block with this label.%s Configured: %s.",
			DidYouMean(c.Host.DefaultProvider, labels), strings.Join(labels, ", ")))
	}
	return diagnostics
}

func (c *Config) decodeProvider(block *hcl.Block) (*Provider, hcl.Diagnostics) {
	body := block.Body.(*hclsyntax.Body)
	p := &Provider{
		Label: block.Labels[0], Plugin: block.Labels[0],
		MTLS: true, StartTimeout: 10 * time.Second, Lifetime: time.Hour,
		Health: c.health, Limits: c.limits,
		config: c, def: block.DefRange, named: block.LabelRanges[0],
		body: &hclsyntax.Body{SrcRange: block.DefRange, EndRange: body.EndRange}, bodyRange: block.DefRange,
	}
	c.show(block.LabelRanges[0], true)
	var diagnostics hcl.Diagnostics
	if !nameForm.MatchString(p.Label) {
		diagnostics = append(diagnostics, mistake("Bad provider label", block.LabelRanges[0],
			"A label is 1 to 63 of a-z, 0-9, \"-\" and \"_\", and begins with a letter."))
	}
	content, more := c.decode(body, p.arguments(), "config", "server", "health", "timeouts")
	diagnostics = append(diagnostics, more...)
	for _, name := range []string{"plugin", "path"} {
		if given, ok := body.Attributes[name]; ok {
			p.named = given.Expr.Range()
		}
	}
	if p.Path == "" {
		p.Path, p.found = c.FindPlugin(p.Plugin), true
	}

	blocks := content.Blocks.ByType()
	diagnostics = append(diagnostics, onlyOne(blocks["config"])...)
	if configs := blocks["config"]; len(configs) > 0 {
		p.body, p.bodyRange = configs[0].Body.(*hclsyntax.Body), configs[0].DefRange
	}
	diagnostics = append(diagnostics, c.decodeOnly(blocks["health"], healthArguments(&p.Health))...)
	diagnostics = append(diagnostics, c.decodeOnly(blocks["timeouts"], limitArguments(&p.Limits))...)
	var own serverSettings
	diagnostics = append(diagnostics, c.decodeServer(blocks["server"], &own)...)
	server, presetName := resolveServer(c.server, own)
	p.Server = server
	p.Server.Health.Timeout = p.Health.ProbeTimeout
	if c.server.broken || own.broken {
		return p, diagnostics // the missing settings may be among the broken ones
	}
	for _, problem := range serverProblems(p.Server, presetName) {
		diagnostics = append(diagnostics, mistake("Incomplete server", c.serverRange(blocks["server"], p), "%s", problem))
	}
	return p, diagnostics
}

func (c *Config) decodeServer(blocks hcl.Blocks, settings *serverSettings) hcl.Diagnostics {
	diagnostics := c.decodeOnly(blocks, settings.arguments())
	settings.broken = diagnostics.HasErrors()
	return diagnostics
}

// serverRange returns where diagnostics about a combination of server settings point: the closest server block.
func (c *Config) serverRange(own hcl.Blocks, p *Provider) hcl.Range {
	if len(own) > 0 {
		return own[0].DefRange
	}
	for _, f := range c.files {
		for _, block := range f.body.Blocks {
			if block.Type == "server" {
				return block.DefRange()
			}
		}
	}
	return p.def
}

// decodeOnly decodes a block that may occur once, if it occurs.
func (c *Config) decodeOnly(blocks hcl.Blocks, arguments []argument) hcl.Diagnostics {
	if len(blocks) == 0 {
		return nil
	}
	_, diagnostics := c.decode(blocks[0].Body, arguments)
	return append(diagnostics, onlyOne(blocks)...)
}

func onlyOne(blocks hcl.Blocks) hcl.Diagnostics {
	var diagnostics hcl.Diagnostics
	for _, block := range blocks[min(1, len(blocks)):] {
		diagnostics = append(diagnostics, mistake("Duplicate block", block.DefRange,
			"There is a %s block on line %d already, and one is the limit here.", block.Type, blocks[0].DefRange.Start.Line))
	}
	return diagnostics
}

// argument is one attribute of a block that the host decodes.
type argument struct {
	name string
	kind kind
	// secret arguments are masked in source lines, and their values are redacted everywhere.
	secret bool
	// set stores a value of the kind's type, never null. It returns what is wrong with it, "must be ...", or "".
	set func(value cty.Value) (problem string)
}

// kind is a type and its name for users.
type kind struct {
	cty  cty.Type
	name string
}

var (
	kindText     = kind{cty.String, "text in double quotes"}
	kindDuration = kind{cty.String, durationForm}
	kindBool     = kind{cty.Bool, "true or false"}
	kindNumber   = kind{cty.Number, "a number"}
	kindInteger  = kind{cty.Number, "a whole number"}
	kindTexts    = kind{cty.List(cty.String), "a list of text, such as [\"a\", \"b\"]"}
	kindTextMap  = kind{cty.Map(cty.String), "a map of text, such as { name = \"value\" }"}
	kindPortMap  = kind{cty.Map(cty.Number), "a map of port numbers, such as { name = 8001 }"}
)

const durationForm = `a duration such as "90s" or "1h30m"`

// decode decodes the arguments and blocks of a body. Provider blocks have a label, others have none.
func (c *Config) decode(body hcl.Body, arguments []argument, blocks ...string) (*hcl.BodyContent, hcl.Diagnostics) {
	schema := &hcl.BodySchema{}
	for _, a := range arguments {
		schema.Attributes = append(schema.Attributes, hcl.AttributeSchema{Name: a.name})
	}
	for _, name := range blocks {
		header := hcl.BlockHeaderSchema{Type: name}
		if name == "provider" {
			header.LabelNames = []string{"label"}
		}
		schema.Blocks = append(schema.Blocks, header)
	}
	content, diagnostics := body.Content(schema)
	for _, a := range arguments {
		attribute, given := content.Attributes[a.name]
		if !given {
			continue
		}
		c.show(attribute.Expr.Range(), !a.secret)
		value, more := c.evaluate(attribute, a.kind)
		diagnostics = append(diagnostics, more...)
		if more.HasErrors() || value.IsNull() {
			continue
		}
		if a.secret {
			c.Secrets.Add(allText(value)...)
			if a.kind.cty == cty.String && !isURLWithoutPassword(value.AsString()) { // a map of variables mostly holds no secret
				c.noteSecret(attribute)
			}
		}
		if problem := a.set(value); problem != "" {
			diagnostics = append(diagnostics, unacceptable(attribute, problem))
		}
	}
	return content, diagnostics
}

func (c *Config) hostArguments() []argument {
	return []argument{
		c.path("plugin_dir", &c.Host.PluginDir),
		c.path("state_dir", &c.Host.StateDir),
		text("provider", &c.Host.DefaultProvider, nil),
		text("owner", &c.Host.Owner, matching(ownerForm,
			`1 to 63 letters, digits, ".", "_" and "-", beginning with a letter or digit`)),
		secret(text("secret", &c.Host.Secret, func(s string) string {
			if len(s) < 16 {
				return "must have at least 16 characters"
			}
			return ""
		})),
		text("log_level", &c.Host.LogLevel, oneOf("off", "error", "warn", "info", "debug", "trace")),
	}
}

func (p *Provider) arguments() []argument {
	return []argument{
		text("plugin", &p.Plugin, matching(nameForm, NameRule)),
		p.config.path("path", &p.Path),
		text("sha256", &p.SHA256, matching(sha256Form, "64 lower-case hex digits; sha256sum prints them")),
		secret(textMap("env", &p.Env, envName)),
		boolean("mtls", &p.MTLS),
		duration("start_timeout", &p.StartTimeout, 100*time.Millisecond, 10*time.Minute),
		duration("lifetime", &p.Lifetime, time.Second, 720*time.Hour),
		textMap("labels", &p.Labels, func(name string) string {
			if name == "" || strings.HasPrefix(name, "berth-") {
				return `may not be empty or begin with "berth-", which marks berth's own labels`
			}
			return ""
		}),
	}
}

func healthArguments(h *connect.Health) []argument {
	return []argument{
		duration("timeout", &h.Timeout, 100*time.Millisecond, 24*time.Hour),
		duration("interval", &h.Interval, 10*time.Millisecond, time.Minute),
		text("ramp", (*string)(&h.Ramp), oneOf(string(connect.RampAuto), string(connect.RampOff))),
		duration("probe_timeout", &h.ProbeTimeout, 10*time.Millisecond, 5*time.Minute),
	}
}

func limitArguments(l *connect.Limits) []argument {
	const least, most = 10 * time.Millisecond, 24 * time.Hour
	return []argument{
		duration("total", &l.Total, least, most),
		duration("create", &l.Create, least, most),
		duration("start", &l.Start, least, most),
		duration("undo", &l.Undo, least, most),
	}
}

// NameRule describes the valid names of plugins.
const NameRule = `1 to 63 of a-z, 0-9, "-" and "_", beginning with a letter`

// ValidName reports whether name is a valid name of a plugin.
func ValidName(name string) bool { return nameForm.MatchString(name) }

var (
	nameForm   = regexp.MustCompile(`^[a-z][a-z0-9_-]{0,62}$`)
	ownerForm  = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$`)
	sha256Form = regexp.MustCompile(`^[0-9a-f]{64}$`)
	envForm    = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
)

func envName(name string) (problem string) {
	if !envForm.MatchString(name) {
		return "must be the name of an environment variable"
	}
	return ""
}

func secret(a argument) argument {
	a.secret = true
	return a
}

// text is an argument for any text that check accepts. A nil check accepts all.
func text(name string, to *string, check func(string) (problem string)) argument {
	return argument{name: name, kind: kindText, set: func(v cty.Value) string {
		if check != nil {
			if problem := check(v.AsString()); problem != "" {
				return problem
			}
		}
		*to = v.AsString()
		return ""
	}}
}

// path is an argument for a path. Relative paths are relative to the configuration file, and "~/" is the home
// directory.
func (c *Config) path(name string, to *string) argument {
	return text(name, to, func(s string) string {
		if s == "" {
			return "must not be empty"
		}
		_, problem := c.resolve(s)
		return problem
	}).then(func() { *to, _ = c.resolve(*to) })
}

func (a argument) then(done func()) argument {
	set := a.set
	a.set = func(v cty.Value) string {
		problem := set(v)
		if problem == "" {
			done()
		}
		return problem
	}
	return a
}

// resolve returns the absolute path that a path in the file stands for, or what is wrong with it.
func (c *Config) resolve(path string) (absolute, problem string) {
	if rest, ok := strings.CutPrefix(path, "~/"); ok {
		home := homeOf(c.getenv)
		if home == "" {
			return "", "begins with ~/, and there is no home directory: HOME is not set to an absolute path"
		}
		return filepath.Join(home, rest), ""
	}
	if filepath.IsAbs(path) {
		return filepath.Clean(path), ""
	}
	return filepath.Join(c.dir, path), ""
}

func boolean(name string, to *bool) argument {
	return argument{name: name, kind: kindBool, set: func(v cty.Value) string {
		*to = v.True()
		return ""
	}}
}

// duration is an argument for a duration from least to most. Zero or negative ones would cause a panic or a busy loop
// later.
func duration(name string, to *time.Duration, least, most time.Duration) argument {
	return argument{name: name, kind: kindDuration, set: func(v cty.Value) string {
		d, err := time.ParseDuration(v.AsString())
		if err != nil {
			return "must be " + durationForm
		}
		if d < least || d > most {
			return fmt.Sprintf("must be between %s and %s", short(least), short(most))
		}
		*to = d
		return ""
	}}
}

// short formats a duration without the zero units at its end: 10m instead of 10m0s.
func short(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// textMap is an argument for a map whose keys check accepts.
func textMap(name string, to *map[string]string, check func(name string) (problem string)) argument {
	return argument{name: name, kind: kindTextMap, set: func(v cty.Value) string {
		var m map[string]string
		if err := gocty.FromCtyValue(v, &m); err != nil {
			return "must be " + kindTextMap.name
		}
		for _, key := range slices.Sorted(maps.Keys(m)) {
			if problem := check(key); problem != "" {
				return fmt.Sprintf("has an entry %q, whose name %s", key, problem)
			}
		}
		*to = m
		return ""
	}}
}

func matching(form *regexp.Regexp, words string) func(string) string {
	return func(s string) string {
		if !form.MatchString(s) {
			return "must be " + words
		}
		return ""
	}
}

func oneOf(allowed ...string) func(string) string {
	return func(s string) string {
		if slices.Contains(allowed, s) {
			return ""
		}
		problem := "must be one of " + strings.Join(allowed, ", ")
		if hint := DidYouMean(s, allowed); hint != "" {
			problem += "." + hint
		}
		return problem
	}
}

// DidYouMean returns a question to append to a sentence, with the nearest candidate, or the first of several equally
// near ones. It returns "" if none is near.
func DidYouMean(given string, candidates []string) string {
	nearest, least := "", 3
	for _, candidate := range candidates {
		if distance := levenshtein.Distance(given, candidate, nil); distance < least {
			nearest, least = candidate, distance
		}
	}
	if nearest == "" {
		return ""
	}
	return fmt.Sprintf(" Did you mean %q?", nearest)
}

func unacceptable(attribute *hcl.Attribute, problem string) *hcl.Diagnostic {
	return mistake("Unacceptable value", attribute.Expr.Range(), "%q %s", attribute.Name, sentence(problem))
}

// sentence adds the full stop that s may lack.
func sentence(s string) string {
	if strings.HasSuffix(s, "?") || strings.HasSuffix(s, ".") {
		return s
	}
	return s + "."
}

// ours marks the diagnostics of this package: their text quotes no literals.
type ours struct{}

func mistake(summary string, subject hcl.Range, format string, args ...any) *hcl.Diagnostic {
	return &hcl.Diagnostic{
		Severity: hcl.DiagError,
		Summary:  summary,
		Detail:   fmt.Sprintf(format, args...),
		Subject:  &subject,
		Extra:    ours{},
	}
}
