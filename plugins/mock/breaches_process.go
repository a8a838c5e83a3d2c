package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"

	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/proto" // registers the codec that wire stands in for
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/berth-dev/berth/shared/provider"
)

// breachVariable contains the breaches outside of calls, which begin before there is a configuration: their names, separated
// by commas.
const breachVariable = "MOCK_BREACHES"

// early is what breaches outside of calls change before the plugin serves.
type early struct {
	// sent changes outgoing messages. received may refuse or change incoming ones.
	sent     []func(m protoreflect.Message)
	received []func(data []byte, m protoreflect.Message, err error) error
	// close is called by Close, which waits for it.
	close func(f *faulty)
	// relay serves in place of the plugin.
	relay *relay
	// open is the other end of a standard input that does not end.
	open *os.File
}

// now are the changes in this process.
var now early

var earlyBreaches = []breach{
	{check: "process/handshake", does: "prints before the handshake",
		early: func(*early) { fmt.Fprintln(processStdout, "mock: starting") }},
	{check: "describe/identity", does: "has no version", early: func(e *early) {
		e.sent = append(e.sent, onMessage("DescribeResponse", func(m protoreflect.Message) { set(m, "version", protoreflect.ValueOfString("")) }))
	}},
	{check: "process/health-service", does: "the health service says that it does not serve", early: func(e *early) {
		const notServing = 2
		e.sent = append(e.sent, onMessage("HealthCheckResponse", func(m protoreflect.Message) { set(m, "status", protoreflect.ValueOfEnum(notServing)) }))
	}},
	{check: "process/ends-with-stdin", does: "does not notice the end of its standard input", early: func(e *early) {
		os.Stdin, e.open, _ = os.Pipe()
	}},
	{check: "process/ends-on-shutdown", does: "does not exit on Shutdown", early: func(e *early) {
		told := stdinOrSignal(syscall.SIGTERM)
		e.close = func(*faulty) { <-told }
	}},
	{check: "process/ends-on-sigterm", does: "does not exit on SIGTERM", early: func(e *early) {
		signals := make(chan os.Signal, 1)
		signal.Notify(signals, syscall.SIGTERM)
		e.close = func(*faulty) {
			if len(signals) > 0 {
				select {}
			}
		}
	}},
	{check: "process/ends-in-a-call", does: "does not exit while a Ping is under way", early: func(e *early) {
		e.close = func(f *faulty) {
			f.memory.mutex.Lock()
			defer f.memory.mutex.Unlock()
			if f.memory.interrupted {
				select {}
			}
		}
	}, method: "ping", effect: effect{failed: noteInterrupted, after: func(ctx context.Context, c *call) error { return noteInterrupted(ctx, c, nil) }}},
	{check: "process/strange-client", does: "takes any client's certificate, and none", early: relayed(&relay{anyClient: true})},
	{check: "describe/schema", does: "an attribute has no documentation", early: func(e *early) {
		e.sent = append(e.sent, onMessage("Attribute", func(m protoreflect.Message) {
			if name := m.Descriptor().Fields().ByName("name"); m.Get(name).String() == "size" {
				set(m, "doc", protoreflect.ValueOfString(""))
			}
		}))
	}},
	{check: "start/declared-headers", does: "does not tell of the header that its endpoints ask for", early: func(e *early) {
		e.sent = append(e.sent, onMessage("DescribeResponse", func(m protoreflect.Message) {
			m.Clear(m.Descriptor().Fields().ByName("endpoint_headers"))
		}))
	}},
	{check: "describe/stable", does: "every Describe tells another version", early: func(e *early) {
		var count atomic.Int64
		e.sent = append(e.sent, onMessage("DescribeResponse", func(m protoreflect.Message) {
			set(m, "version", protoreflect.ValueOfString(fmt.Sprintf("0.0.%d", count.Add(1))))
		}))
	}},
	{check: "describe/capabilities", does: "does not declare that it can renew, but can", early: func(e *early) {
		const renew = 2
		e.sent = append(e.sent, onMessage("DescribeResponse", func(m protoreflect.Message) {
			list := m.Mutable(m.Descriptor().Fields().ByName("capabilities")).List()
			kept := 0
			for i := range list.Len() {
				if c := list.Get(i); c.Enum() != renew {
					list.Set(kept, c)
					kept++
				}
			}
			list.Truncate(kept)
		}))
	}},
	{check: "configure/required", does: "says that it requires an attribute, and does without", early: func(e *early) {
		e.sent = append(e.sent, onMessage("Attribute", func(m protoreflect.Message) {
			if name := m.Descriptor().Fields().ByName("name"); m.Get(name).String() == "serve" {
				set(m, "required", protoreflect.ValueOfBool(true))
			}
		}))
	}},
	{check: "configure/once", does: "takes a second Configure", early: relayed(&relay{answers: func(method string, _ []byte, configured int) ([]byte, bool) {
		return nil, method == configureMethod && configured > 0
	}})},
	{check: "configure/before-calls", does: "answers Ping before it is configured", early: relayed(&relay{answers: func(method string, request []byte, configured int) ([]byte, bool) {
		return pingNotYet, method == pingMethod && configured == 0 && bytes.Contains(request, []byte("no-such-sandbox"))
	}})},
	{check: "configure/wrong-type", does: "ignores attributes of the wrong type", early: forgiving(func(oneOf bool) bool { return !oneOf })},
	{check: "configure/one-of", does: "ignores values that are not allowed", early: forgiving(func(oneOf bool) bool { return oneOf })},
	{check: "configure/not-json", does: "takes what is not JSON for an empty configuration", early: func(e *early) {
		e.received = append(e.received, onConfigure(func(text []byte) []byte {
			if values := map[string]any{}; json.Unmarshal(text, &values) != nil {
				return nil
			}
			return text
		}))
	}},
	{check: "robust/garbage", does: "crashes on requests that are not protobuf", early: func(e *early) {
		e.received = append(e.received, func(_ []byte, _ protoreflect.Message, err error) error {
			if err != nil {
				fmt.Fprintln(processStderr, "mock: told to crash on", err)
				os.Exit(2)
			}
			return nil
		})
	}},
	{check: "robust/oversized", does: "takes requests of any size", early: relayed(&relay{limit: 1 << 30})},
	{check: "robust/unknown-method", does: "answers calls that do not exist", early: relayed(&relay{answers: func(method string, _ []byte, _ int) ([]byte, bool) {
		return nil, strings.Contains(method, "BerthCheck") || strings.Contains(method, "berth.check")
	}})},
	{check: "robust/large", does: "takes no requests of more than 4 MiB", early: func(e *early) {
		const limit = 4 << 20
		e.received = append(e.received, func(data []byte, _ protoreflect.Message, err error) error {
			if len(data) > limit {
				return errors.New("mock: the request is too large")
			}
			return err
		})
	}},
}

// launchBreaches applies a list of breaches outside of calls.
func launchBreaches(list string) error {
	if list == "" {
		return nil
	}
	for name := range strings.SplitSeq(list, ",") {
		b, err := parseBreach(name)
		if err != nil {
			return fmt.Errorf("%s: %w", breachVariable, err)
		}
		if b.early != nil {
			b.early(&now)
		}
	}
	if now.relay != nil {
		return now.relay.run()
	}
	if now.sent != nil || now.received != nil {
		encoding.RegisterCodecV2(wire{encoding.GetCodecV2("proto")})
	}
	return nil
}

// stdinOrSignal forwards standard input. It returns a channel that is closed at its end or by the signal.
func stdinOrSignal(s os.Signal) <-chan struct{} {
	told := make(chan struct{})
	tell := sync.OnceFunc(func() { close(told) })
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, s)
	reader, writer, err := os.Pipe()
	if err != nil {
		panic(err)
	}
	stdin := os.Stdin
	os.Stdin = reader
	go func() {
		<-signals
		tell()
	}()
	go func() {
		_, _ = io.Copy(writer, stdin) // any error means its end
		tell()
		writer.Close()
	}()
	return told
}

func noteInterrupted(ctx context.Context, c *call, err error) error {
	if ctx.Err() != nil {
		c.faulty.memory.mutex.Lock()
		defer c.faulty.memory.mutex.Unlock()
		c.faulty.memory.interrupted = true
	}
	return err
}

// wire is the codec of all messages. It applies the changes to them.
type wire struct{ encoding.CodecV2 }

func (w wire) Marshal(v any) (mem.BufferSlice, error) {
	if m, ok := v.(proto.Message); ok {
		m = proto.Clone(m) // descriptions are shared
		for _, change := range now.sent {
			change(m.ProtoReflect())
		}
		v = m
	}
	return w.CodecV2.Marshal(v)
}

func (w wire) Unmarshal(data mem.BufferSlice, v any) error {
	err := w.CodecV2.Unmarshal(data, v)
	if m, ok := v.(proto.Message); ok {
		for _, look := range now.received {
			if err := look(data.Materialize(), m.ProtoReflect(), err); err != nil {
				return err
			}
		}
	}
	return err
}

// onMessage changes messages with the name, including nested ones.
func onMessage(name protoreflect.Name, change func(protoreflect.Message)) func(protoreflect.Message) {
	var visit func(protoreflect.Message)
	visit = func(m protoreflect.Message) {
		if m.Descriptor().Name() == name {
			change(m)
		}
		m.Range(func(field protoreflect.FieldDescriptor, value protoreflect.Value) bool {
			if field.IsList() && field.Message() != nil {
				for i := range value.List().Len() {
					visit(value.List().Get(i).Message())
				}
			}
			return true
		})
	}
	return visit
}

func set(m protoreflect.Message, field protoreflect.Name, value protoreflect.Value) {
	m.Set(m.Descriptor().Fields().ByName(field), value)
}

// onConfigure changes the configuration before it is read.
func onConfigure(change func(text []byte) []byte) func([]byte, protoreflect.Message, error) error {
	return func(_ []byte, m protoreflect.Message, err error) error {
		if err == nil && m.Descriptor().Name() == "ConfigureRequest" {
			field := m.Descriptor().Fields().ByName("config_json")
			m.Set(field, protoreflect.ValueOfBytes(change(bytes.Clone(m.Get(field).Bytes()))))
		}
		return err
	}
}

// forgiving drops errors about attributes that forgives accepts. oneOf is set for a text that is not among the allowed
// ones.
func forgiving(forgives func(oneOf bool) bool) func(*early) {
	return func(e *early) {
		e.received = append(e.received, onConfigure(func(text []byte) []byte {
			_, err := provider.DecodeConfig[Config](text)
			var values map[string]any
			if err == nil || json.Unmarshal(text, &values) != nil {
				return text
			}
			for _, a := range provider.Attributes[Config]() {
				refused := slices.ContainsFunc(provider.AsError(err).Fields, func(f provider.FieldError) bool { return f.Field == a.Name })
				_, isText := values[a.Name].(string)
				if refused && forgives(isText && len(a.OneOf) > 0) {
					delete(values, a.Name)
				}
			}
			changed, err := json.Marshal(values)
			if err != nil {
				return text
			}
			return changed
		}))
	}
}
