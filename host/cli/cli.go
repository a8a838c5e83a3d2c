// Package cli is the berth command: it reads flags and configuration, runs the lifecycle, and shows what came of it.
// Standard output carries the result and nothing else; logs, progress and explanations go to standard error. Everything
// that is written passes the redaction of known secrets, except the one place where a result must carry them.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/grpclog"

	"github.com/berth-dev/berth/host/fleet"
)

// Main runs one command and returns the exit code of the process. options are those of the fleet that the command works
// with; Main completes them from args and getenv.
func Main(args []string, stdout, stderr io.Writer, getenv func(string) (string, bool), options fleet.Options) int {
	silenceLibraries()
	a := newApp(stdout, stderr, getenv)
	a.options = options
	ctx, stop := interruptible(context.Background(), a)
	defer stop()

	root := a.rootCommand()
	root.SetArgs(args)
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error {
		a.flags.output = outputIn(args) // what stands behind the mistake has not been read
		return err
	})
	command, err := root.ExecuteContextC(ctx)
	a.close()
	return a.end(ctx, command, err)
}

// silenceLibraries keeps libraries from writing to the streams of the process, whatever the environment tells them: gRPC
// has a log of its own, and others use that of the standard library.
var silenceLibraries = sync.OnceFunc(func() {
	grpclog.SetLoggerV2(grpclog.NewLoggerV2(io.Discard, io.Discard, io.Discard))
	log.SetOutput(io.Discard)
})

// sameInterrupt is how long after an interrupt another one is taken for the same: a Ctrl-C or a kill often arrives twice,
// through the process group and from a parent that passes it on.
const sameInterrupt = time.Second

// interruptible gives a context that the first interrupt ends, so that the command can undo what it made. The second
// one ends the process on the spot.
func interruptible(ctx context.Context, a *app) (context.Context, func()) {
	ctx, cancel := context.WithCancel(ctx)
	// A reader that has gone makes a write fail. Without this it would end the process, whatever there is to undo. What
	// this process starts does not inherit it.
	broken := make(chan os.Signal, 1)
	signal.Notify(broken, syscall.SIGPIPE)
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	if !signal.Ignored(syscall.SIGHUP) { // nohup
		signal.Notify(signals, syscall.SIGHUP)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if _, interrupted := <-signals; !interrupted {
			return
		}
		began := time.Now()
		a.interrupted.Store(true)
		if a.connecting.Load() {
			a.note("berth: interrupted, undoing what was made; interrupt again to leave at once")
		} else {
			a.note("berth: interrupted; interrupt again to leave at once")
		}
		cancel()
		for range signals {
			if time.Since(began) > sameInterrupt {
				a.note("berth: left without undoing: berth sessions shows what is still there")
				_ = a.screen.out.flush(context.Background(), grace)
				os.Exit(exitInterrupted)
			}
		}
	}()
	return ctx, func() {
		signal.Stop(broken)
		signal.Stop(signals)
		close(signals)
		<-done
		cancel()
	}
}

func (a *app) rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "berth",
		Short: "Connect AI agents to cloud sandboxes, the same way for every provider",
		Long: `berth gets a sandbox for a session from a provider, starts the action server in it, waits until the
server is healthy, and prints its URL with the headers that open it.

  berth connect s1                 connect the session s1: find its sandbox, wake it, or create one
  berth connect s1 -o json         the same for programs
  berth sessions                   what there is
  berth hold s1                    keep it alive for as long as this runs
  berth disconnect s1              destroy the session's sandbox
  berth gc                         destroy what nobody owns any more

The configuration is the file named with --config or BERTH_CONFIG, else ./config.hcl, else the built-in one: the local
provider. Exit codes: 0 done, 1 other failure, 2 usage or configuration, 3 denied, 4 not found, 5 quota or rate limit,
6 create or start failed, 7 the server did not become healthy, 8 plugin failed, 9 the result could not be delivered,
124 deadline, 130 interrupted.`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          isCommand,
		RunE:          func(c *cobra.Command, _ []string) error { return c.Help() },
		PersistentPreRunE: func(c *cobra.Command, _ []string) error {
			return a.checkFlags(c)
		},
	}
	root.SetOut(a.stdout)
	root.SetErr(a.screen)
	flags := root.PersistentFlags()
	flags.StringVarP(&a.flags.config, "config", "c", "", "configuration file (default: $BERTH_CONFIG, ./config.hcl, built-in)")
	flags.StringVarP(&a.flags.output, "output", "o", "text", "output: text, json, or one that a single command has: env (connect), markdown (plugin describe), junit (plugin check)")
	flags.StringVar(&a.flags.logLevel, "log-level", "", "off, error, warn, info, debug or trace (default: $BERTH_LOG, then the configuration)")
	root.AddCommand(
		a.connectCommand(), a.pingCommand(), a.sessionsCommand(), a.disconnectCommand(), a.holdCommand(),
		a.recoverCommand(), a.gcCommand(), a.providersCommand(),
		a.configCommand(), a.doctorCommand(), a.pluginCommand(), a.versionCommand(),
	)
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	for _, c := range root.Commands() {
		switch c.Name() {
		case "help": // cobra's own answers a word that is no command with the help of all
			c.Run, c.RunE = nil, func(_ *cobra.Command, args []string) error {
				about, rest, _ := root.Find(args)
				if len(rest) > 0 {
					return isCommand(about, rest)
				}
				return about.Help()
			}
		case "completion":
			c.Args, c.RunE = isCommand, func(c *cobra.Command, _ []string) error { return c.Help() }
		}
	}
	a.addCompletion(root)
	return root
}

// outputIn returns what the command line asks for with -o, wherever it stands, without knowing the other flags.
func outputIn(args []string) string {
	output := "text"
	for i, arg := range args {
		value, short := strings.CutPrefix(arg, "-o")
		value = strings.TrimPrefix(value, "=")
		long, isLong := strings.CutPrefix(arg, "--output=")
		switch {
		case arg == "--":
			return output
		case arg == "-o" || arg == "--output":
			if i+1 < len(args) {
				output = args[i+1]
			}
		case isLong:
			output = long
		case short:
			output = value
		}
	}
	return output
}

// isCommand refuses the arguments of a command that only has commands below it: the word is none of them.
func isCommand(c *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	c.SuggestionsMinimumDistance = 2
	if similar := c.SuggestionsFor(args[0]); len(similar) > 0 {
		return usagef("there is no command %q; did you mean %s %s?", args[0], c.CommandPath(), strings.Join(similar, " or "))
	}
	return usagef("there is no command %q", args[0])
}

// checkFlags refuses values that no command takes.
func (a *app) checkFlags(c *cobra.Command) error {
	if slices.Contains(outputsOf(c), a.flags.output) {
		return nil
	}
	for command, output := range ownOutput {
		if a.flags.output == output {
			return usagef("-o %s is for %s only", output, command)
		}
	}
	return usagef("-o %s: the outputs of %s are %s", a.flags.output, c.CommandPath(), strings.Join(outputsOf(c), ", "))
}

// ownOutput is the value of -o that a command has besides those that all have.
var ownOutput = map[string]string{"berth connect": "env", "berth plugin describe": "markdown", "berth plugin check": "junit"}

// outputsOf returns the values of -o that a command has.
func outputsOf(c *cobra.Command) []string {
	outputs := []string{"text", "json"}
	if output := ownOutput[c.CommandPath()]; output != "" {
		outputs = append(outputs, output)
	}
	return outputs
}

// noArguments refuses all arguments.
func noArguments(c *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usagef("%s takes no arguments: %s", c.CommandPath(), strings.Join(args, " "))
	}
	return nil
}

// exactly refuses anything but the arguments that the command's usage names.
func exactly(names ...string) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		switch {
		case len(args) < len(names):
			return usagef("%s is missing: %s %s", names[len(args)], c.CommandPath(), strings.Join(names, " "))
		case len(args) > len(names):
			return usagef("%s takes %s and nothing else: %s", c.CommandPath(), strings.Join(names, " and "),
				strings.Join(args[len(names):], " "))
		}
		return nil
	}
}

// usageError is a command line that cannot be run.
type usageError struct{ error }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// run wraps the work of a command: what it returns is a failure, while an error without this mark comes from cobra and
// is a mistake in the command line.
func run(work func(c *cobra.Command, args []string) error) func(*cobra.Command, []string) error {
	return func(c *cobra.Command, args []string) error {
		err := work(c, args)
		var usage usageError
		if err == nil || errors.As(err, &usage) {
			return err
		}
		return commandError{err}
	}
}

type commandError struct{ error }

func (e commandError) Unwrap() error { return e.error }

func providerFlag(c *cobra.Command) *string {
	return c.Flags().StringP("provider", "p", "", "the provider's label in the configuration (default: the session's, else the configured one)")
}

// sessionFlag lets the session be named as an argument or with --session.
func sessionFlag(c *cobra.Command) func(args []string) (string, error) {
	session := c.Flags().StringP("session", "s", "", "the session's id; may also be the argument")
	c.Args = func(_ *cobra.Command, args []string) error {
		if len(args) > 1 {
			return usagef("one session at a time, not %d: %s", len(args), strings.Join(args, ", "))
		}
		return nil
	}
	return func(args []string) (string, error) {
		switch {
		case len(args) == 0 && *session == "":
			return "", usagef("which session? berth %s SESSION", c.Name())
		case len(args) == 1 && *session != "" && args[0] != *session:
			return "", usagef("two sessions are named: %s and %s", args[0], *session)
		case len(args) == 1:
			return args[0], nil
		}
		return *session, nil
	}
}
