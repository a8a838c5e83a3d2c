// Package cloudtest tests the plugins for clouds: what every one of them must do is one test here, run over each cloud's
// simulator. It speaks to a plugin through the interfaces of package provider alone. Only tests import it.
package cloudtest

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/berth-dev/berth/plugins/internal/simcloud"
	"github.com/berth-dev/berth/shared/cloud"
	"github.com/berth-dev/berth/shared/provider"
)

// Cloud is a cloud and the plugin for it.
type Cloud struct {
	// Plugin is the plugin's name, as in plugins/NAME.
	Plugin string
	// Start starts a simulator that lives as long as the test.
	Start func(t *testing.T, options Options) *World
	// Open opens the plugin with a configuration in JSON, in which secret attributes are set if needed.
	Open func(configuration string) (io.Closer, error)
	// Configurations are such, and the attributes that they are refused for. Empty: they are accepted.
	Configurations map[string]string

	// Secret opens the cloud's API. It goes into the header SecretHeader and nowhere else.
	Secret, SecretHeader string

	// The simulator's names of some operations: the call that finds a session's sandbox, the one that makes one, a page
	// of a listing, a request to a server in a sandbox.
	LookUp, Create, List, Port string
	// Keyless are the operations whose calls must not carry the secret.
	Keyless []string
	// Inside are the operations that are not calls of the control API, which pings must not burden.
	Inside []string
	// Nameless clouds find a session's sandbox by its labels: one with another owner's labels is in nobody's way.
	Nameless bool

	// Scenes are the calls that the plugin makes, for the faults.
	Scenes []Scene
	// Errors are answers of the API and the errors they become.
	Errors []ErrorCase
	// Endings are ways in which a sandbox ends that only this cloud knows.
	Endings map[string]Ending
	// Silences are ways in which a server may be silent that only this cloud knows.
	Silences map[string]func(w *World, id string)
}

// Options say how a simulator behaves.
type Options struct {
	// Create is how long a sandbox takes until it runs, Change how long it takes to suspend, wake or end it.
	Create, Change time.Duration
	// Lag is how late a new sandbox shows in listings, where they can be behind.
	Lag time.Duration
	// Minute is how long a minute is for a cloud that counts lifetimes in minutes. Zero: a minute.
	Minute time.Duration
	// Variant is a word of a Scene for a setting that only its cloud knows.
	Variant string
}

// Pace is how patient a plugin is.
type Pace int

const (
	// Brisk suits a cloud without delays, on a machine that may be busy.
	Brisk Pace = iota
	// Normal is the plugin's own.
	Normal
	// Curt gives calls up that are not answered within a few seconds, and after few tries.
	Curt
)

// Times are the kit's, for a plugin as patient as that.
func (p Pace) Times() cloud.Times {
	if p == Normal {
		return cloud.DefaultTimes
	}
	brisk := cloud.Times{
		Retry: cloud.Retry{Tries: 4, First: 5 * time.Millisecond, Most: 20 * time.Millisecond, Longest: 10 * time.Second},
		Poll:  5 * time.Millisecond, PollMost: 20 * time.Millisecond, Taken: 10 * time.Second, Lost: 100 * time.Millisecond,
		Rivals: 3 * time.Second, Undo: 10 * time.Second, Reach: 15 * time.Second, Script: 50 * time.Second,
		FirstLook: 50 * time.Millisecond, Patience: 100 * time.Millisecond, LookServer: 2 * time.Second, LookCloud: 5 * time.Second,
	}
	if p == Curt {
		brisk.Retry.Tries, brisk.Reach, brisk.Script = 2, 6*time.Second, 4*time.Second
	}
	return brisk
}

// World is a running simulator, and what leads to it.
type World struct {
	// Cloud is the simulator itself, for what only its own tests know.
	Cloud any
	// Traffic logs the calls.
	Traffic *simcloud.Traffic
	// Inject injects a fault that is worded in HTTP, in the cloud's own language. Nil: Traffic.Fail.
	Inject func(simcloud.Fault) *simcloud.Injected
	// Provider opens the plugin. Like a process of its own it shares nothing with others but the cloud.
	Provider func(t *testing.T, pace Pace, log hclog.Logger) provider.Provider
	// Config is the plugin's config block; Env is the same as environment variables.
	Config map[string]any
	Env    map[string]string

	// Sandboxes lists what is there: whatever costs money or holds a name.
	Sandboxes func() []Sandbox
	// Box is a sandbox's machine.
	Box func(id string) *simcloud.Box
	// Plant adds running sandboxes without machines.
	Plant func(count int, labels map[string]string) error
	// Label changes some labels of a sandbox, behind the plugin's back.
	Label func(id string, labels map[string]string)
	// End ends a sandbox and Suspend suspends it, behind the plugin's back. Suspend is nil where the cloud cannot.
	End, Suspend func(id string)
	// Hibernate puts a sandbox into a state called "hibernating", which the plugin does not know. Nil: there are no states.
	Hibernate func(id string)
}

// Sandbox is one that is there.
type Sandbox struct {
	ID        string
	Suspended bool
}

// Ending is a way in which a sandbox ends, and what a ping makes of it.
type Ending struct {
	Happen func(w *World, id string)
	Status provider.PingStatus
	Reason string
}

// ErrorCase is an answer of the API to LookUp or Create, and the error that Attach or Create makes of it.
type ErrorCase struct {
	Fault simcloud.Fault
	Want  provider.Error // its Message is a part of the whole
}

// Answered is an answer of the API whose message the error repeats.
func Answered(operation string, status int, message string, want provider.Error) ErrorCase {
	want.Message = message
	fault := Answer(status, message)
	fault.Operation = operation
	return ErrorCase{Fault: fault, Want: want}
}

// Simulate starts a simulator that lives as long as the test.
func Simulate[O any, C interface{ Close() }](t *testing.T, start func(O) (C, error), options O) C {
	t.Helper()
	if err := simcloud.Isolation(); err != nil {
		t.Skip(err)
	}
	cloud, err := start(options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cloud.Close)
	return cloud
}

// Configure decodes attributes, with the defaults of the rest. change, which may be nil, changes what comes of them.
func Configure[C any](t *testing.T, attributes map[string]any, change func(*C)) C {
	t.Helper()
	config, err := Decode[C](attributes, "{}")
	if err != nil {
		t.Fatal(err)
	}
	if change != nil {
		change(&config)
	}
	return config
}

// Opener makes Cloud.Open of a plugin's open. The needed attributes are set unless a configuration sets them itself.
func Opener[C any, P io.Closer](needed map[string]any, open func(context.Context, C, hclog.Logger) (P, error)) func(string) (io.Closer, error) {
	return func(configuration string) (io.Closer, error) {
		config, err := Decode[C](needed, configuration)
		if err != nil {
			return nil, err
		}
		return open(context.Background(), config, hclog.NewNullLogger())
	}
}

// Decode reads attributes in JSON over others, with the defaults of the rest.
func Decode[C any](attributes map[string]any, configuration string) (C, error) {
	all := maps.Clone(attributes)
	if err := json.Unmarshal([]byte(configuration), &all); err != nil {
		return *new(C), err
	}
	text, err := json.Marshal(all)
	if err != nil {
		return *new(C), err
	}
	return provider.DecodeConfig[C](text)
}

// Run runs the tests over a cloud.
func Run(t *testing.T, cloud Cloud) {
	for _, test := range []struct {
		name string
		// alone measures time or keeps the machine busy, so no other test runs meanwhile.
		alone bool
		run   func(f *fixture)
	}{
		{"Conformance", true, testConformance},
		{"TheWaitEndsInTimeWithTheVerdict", true, testVerdicts},
		{"ProbesThatKeepFailingCostOneCallInFiveSeconds", false, testSilence},
		{"TheHealthWaitLeavesTheAPIAlone", false, testHealthWait},
		{"AnUnknownStateIsWaitedForAndNamed", false, testUnknownState},
		{"ALoginPageIsNotAlive", false, testLoginPage},

		{"ASessionKeepsItsSandboxUntilItIsDestroyed", false, testLifecycle},
		{"ACancelledCreateLeavesNothing", false, testCancelledCreate},
		{"ManyCreatesAtOnceMakeOneSandbox", false, testManyCreates},
		{"ACreateWhoseAnswerIsLostMakesOneSandbox", false, testLostAnswer},
		{"AStrangersSandboxIsRefused", false, testStranger},
		{"ASandboxIsAttachedByItsID", false, testAttachByID},
		{"ASandboxThatHasEndedIsGone", false, testGone},
		{"ASandboxEndsByItself", false, testLifetime},
		{"AllPagesOfAListingAreRead", false, testPages},
		{"AListingOfAllOwnersShowsThoseOfOthers", false, testOwners},
		{"ALifeIsRenewed", false, testRenew},

		{"AServerIsStartedOnceHoweverOftenItIsAsked", false, testStartedOnce},
		{"AServerThatListensOnIPv6OnlyIsTold", false, testIPv6Only},
		{"AServerThatCannotBeStartedMakesNoSandbox", false, testUnstartable},
		{"AServersWordsReachItUnchangedAndItsSecretsNoCommandLine", false, testWords},
		{"AServerThatDiesAtOnceIsReportedAndCanBeStartedAgain", false, testDeath},
		{"ExtraPortsHaveURLsOfTheirOwnAndAllArePrivate", false, testPorts},
		{"LogsAreTheLastLines", false, testLogs},

		{"AConfigurationIsRefusedAtItsAttribute", false, testConfigurations},
		{"AFailedLookUpIsNotAMissingSandbox", false, testFailedLookUp},
		{"ARateLimitIsObeyed", false, testRateLimit},
		{"TheAPIsErrorsHaveTheirClasses", false, testErrors},
		{"TheSecretIsInItsHeaderOnly", false, testSecret},
		{"Faults", false, testFaults},

		{"EachProcessFindsWhatTheOneBeforeLeft", false, testProcesses},
		{"TheLinesForAShellReachTheServer", false, testShell},
		{"TwoProcessesAtOnceMakeOneSandbox", false, testRace},
		{"AnInterruptLeavesNothing", false, testInterrupt},
		{"ARefusedKeyIsNotAnEmptyCloud", false, testRefusedKey},
	} {
		t.Run(test.name, func(t *testing.T) {
			if !test.alone {
				t.Parallel()
			}
			test.run(&fixture{T: t, cloud: cloud})
		})
	}
}

// fixture is one test over one cloud.
type fixture struct {
	*testing.T
	cloud Cloud
	*World
}

// start starts the cloud and opens the plugin.
func (f *fixture) start(options Options) provider.Provider {
	f.Helper()
	f.World = f.cloud.Start(f.T, options)
	return f.open(Brisk)
}

// with is the fixture for a subtest.
func (f *fixture) with(t *testing.T) *fixture { return &fixture{T: t, cloud: f.cloud} }

// open opens the plugin once more.
func (f *fixture) open(pace Pace) provider.Provider {
	f.Helper()
	return f.Provider(f.T, pace, f.log())
}

// log is a log in which the secret must not be.
func (f *fixture) log() hclog.Logger {
	text := &buffer{}
	f.Cleanup(func() {
		if strings.Contains(text.String(), f.cloud.Secret) {
			f.Errorf("the secret was logged:\n%s", text)
		}
	})
	return hclog.New(&hclog.LoggerOptions{Level: hclog.Trace, Output: text})
}

// inject injects a fault.
func (f *fixture) inject(fault simcloud.Fault) *simcloud.Injected {
	if f.Inject != nil {
		return f.Inject(fault)
	}
	return f.Traffic.Fail(fault)
}

// control returns the calls of the control API since a time.
func (f *fixture) control(since time.Time) []simcloud.Call {
	var calls []simcloud.Call
	for _, call := range f.Traffic.Since(since) {
		if !slices.Contains(f.cloud.Inside, call.Operation) {
			calls = append(calls, call)
		}
	}
	return calls
}

// wantCode checks the class of an error.
func (f *fixture) wantCode(err error, code provider.Code) {
	f.Helper()
	if provider.CodeOf(err) != code {
		f.Errorf("error %v (%q), want %q", err, provider.CodeOf(err), code)
	}
}

// left checks how many sandboxes are there.
func (f *fixture) left(want int) {
	f.Helper()
	if there := f.Sandboxes(); len(there) != want {
		f.Errorf("there are %+v, want %d", there, want)
	}
}

// inside runs a shell script in a sandbox and returns what it printed.
func (f *fixture) inside(id, script string) string {
	f.Helper()
	return Inside(f.T, f.Box(id), script)
}

// servers counts the action servers in a sandbox.
func (f *fixture) servers(id string) int {
	f.Helper()
	return strings.Count(f.inside(id, "cat /proc/[0-9]*/comm"), "berth-action-s")
}

// buffer is written to by several goroutines.
type buffer struct {
	mutex sync.Mutex
	text  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mutex.Lock()
	defer b.mutex.Unlock()
	return b.text.Write(p)
}

func (b *buffer) String() string {
	b.mutex.Lock()
	defer b.mutex.Unlock()
	return b.text.String()
}
