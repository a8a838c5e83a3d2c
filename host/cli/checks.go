package cli

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"

	"github.com/hashicorp/hcl/v2"
	"github.com/spf13/cobra"

	"github.com/berth-dev/berth/host/config"
	"github.com/berth-dev/berth/host/connect"
	"github.com/berth-dev/berth/host/fleet"
	"github.com/berth-dev/berth/host/wire"
	"github.com/berth-dev/berth/shared/provider"
)

// Version is the version of the host. The build sets it.
var Version = "dev"

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Show the version of berth and of the plugin protocol",
		Args:  noArguments,
		RunE: run(func(*cobra.Command, []string) error {
			if a.flags.output == "json" {
				return a.printJSON(wire.Version{
					Version: Version, Protocol: provider.ProtocolVersion, Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH,
				})
			}
			a.print("berth %s (plugin protocol %d, %s, %s/%s)\n", Version, provider.ProtocolVersion,
				runtime.Version(), runtime.GOOS, runtime.GOARCH)
			return nil
		}),
	}
}

func (a *app) configCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "config",
		Short: "Look at the configuration",
		Args:  isCommand,
		RunE:  func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(&cobra.Command{
		Use:   "check",
		Short: "Check the configuration, with the plugins it names",
		Long: `Read the configuration, start every plugin it names, and let each check its own part. All mistakes are shown at
once, with their source lines. Nothing is created, and the providers themselves are not asked: see berth doctor.`,
		Args: noArguments,
		RunE: run(func(c *cobra.Command, _ []string) error {
			a.checking = true
			err := a.load()
			var mistakes *fleet.ConfigError
			var found hcl.Diagnostics
			if errors.As(err, &mistakes) {
				found = mistakes.Diagnostics
			} else if err != nil {
				return err
			}
			if err := a.fleet.CheckConfig(c.Context(), found); err != nil {
				return err
			}
			name := a.conf.Path
			if name == "" {
				name = "no configuration file was found: the built-in configuration"
			}
			if a.flags.output == "json" {
				return a.printJSON(wire.Config{Config: name, Providers: len(a.conf.Providers), OK: true})
			}
			a.print("%s is fine: %d provider(s)\n", name, len(a.conf.Providers))
			return nil
		}),
	})
	return c
}

func (a *app) doctorCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "doctor",
		Short: "Check this installation, down to whether the providers accept the credentials",
		Long: `Check the configuration, the state directory, the records, every plugin, and by listing sandboxes whether every
provider accepts our credentials. Nothing is created. The exit code is that of the first check that failed. A warning
tells of files that other users of this machine may read or change; it fails nothing.`,
		Args: noArguments,
		RunE: run(func(c *cobra.Command, _ []string) error {
			if err := a.load(); err != nil {
				return err
			}
			findings := []finding{a.configFinding(), a.stateFinding(), a.recordsFinding(c.Context()), a.lockFinding()}
			findings = append(findings, a.providerFindings(c.Context())...)
			findings = append(findings, a.permissionFindings()...) // after the plugins have told which attributes are secret
			return a.printFindings(findings)
		}),
	}
}

// finding is the outcome of one check of the doctor. code is the exit code for it.
type finding struct {
	wire.Check
	code int
}

func (a *app) finding(check, detail string, err error) finding {
	if err == nil {
		return finding{Check: wire.Check{Check: check, OK: true, Detail: detail}}
	}
	f, code := a.failure(commandError{err})
	return finding{wire.Check{Check: check, Detail: f.Message, Error: &f}, code}
}

func (a *app) configFinding() finding {
	detail := a.conf.Path
	if detail == "" {
		detail = "no configuration file was found, so the built-in one counts: " + strings.TrimSpace(config.BuiltIn)
	}
	return a.finding("configuration", detail, nil)
}

func (a *app) stateFinding() finding {
	return a.finding("state directory", a.conf.Host.StateDir, a.fleet.CheckState())
}

func (a *app) recordsFinding(ctx context.Context) finding {
	sandboxes, interrupted, err := a.fleet.CheckRecords(ctx)
	detail := count(sandboxes, "session")
	if interrupted > 0 {
		detail += fmt.Sprintf(", %d of them interrupted: berth recover finishes them", interrupted)
	}
	return a.finding("records", detail, err)
}

func (a *app) providerFindings(ctx context.Context) []finding {
	findings := make([]finding, len(a.conf.Providers))
	var checks sync.WaitGroup
	for i, p := range a.conf.Providers {
		checks.Go(func() {
			name := "provider " + p.Label
			sandboxes, err := a.fleet.CheckProvider(ctx, p.Label)
			var failed *connect.Error
			if errors.As(err, &failed) && failed.Code == connect.CodeUnsupported {
				findings[i] = a.finding(name, "the plugin starts; it cannot list, so the credentials are not checked", nil)
				return
			}
			findings[i] = a.finding(name, fmt.Sprintf("answers, %d sandbox(es)", sandboxes), err)
		})
	}
	checks.Wait()
	return findings
}

// permissionFindings warns of files that belong to this user alone and are open to others.
func (a *app) permissionFindings() []finding {
	var findings []finding
	for _, exposure := range a.fleet.Exposures() {
		findings = append(findings, finding{Check: wire.Check{Check: "permissions", OK: true, Warning: true, Detail: exposure}})
	}
	if len(findings) == 0 {
		findings = append(findings, a.finding("permissions", "no other user can read the secrets or replace what is run", nil))
	}
	return findings
}

func (a *app) printFindings(findings []finding) error {
	if a.flags.output == "json" {
		var checks wire.Checks
		for _, f := range findings {
			checks.Checks = append(checks.Checks, f.Check)
		}
		if err := a.printJSON(checks); err != nil {
			return err
		}
	} else {
		for _, f := range findings {
			mark := "ok  "
			switch {
			case !f.OK:
				mark = "FAIL"
			case f.Warning:
				mark = "warn"
			}
			a.print("%s  %-20s %s\n", own(mark), f.Check.Check, f.Detail)
			if f.Error != nil && f.Error.Hint != "" {
				a.print("      %-20s %s\n", "", f.Error.Hint)
			}
		}
	}
	for _, f := range findings {
		if f.code != 0 {
			return exitError(f.code)
		}
	}
	return nil
}
