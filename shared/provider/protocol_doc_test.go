package provider

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	rpccode "google.golang.org/genproto/googleapis/rpc/code"
	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/testing/protocmp"

	pb "github.com/berth-dev/berth/shared/proto/berth/provider/v1"
)

// docs/plugin-protocol.md is all that an author without Go has. These tests hold it to the contract.

func protocolDocument(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("../../docs/plugin-protocol.md")
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestTheProtocolDocumentNamesEveryCallMessageFieldAndValue(t *testing.T) {
	t.Parallel()
	text := protocolDocument(t)
	file := pb.File_berth_provider_v1_provider_proto
	wants := func(where, what string, name protoreflect.Name) {
		if !strings.Contains(where, "`"+string(name)+"`") {
			t.Errorf("the document does not name the %s `%s` where it belongs", what, name)
		}
	}
	for i := range file.Services().Len() {
		service := file.Services().Get(i)
		if !strings.Contains(text, "`"+string(service.FullName())+"`") {
			t.Errorf("the document does not name the service `%s`", service.FullName())
		}
		for j := range service.Methods().Len() {
			method := service.Methods().Get(j)
			if !strings.Contains(text, "\n### `"+string(method.Name())+"`\n") {
				t.Errorf("the document has no section on the call %s", method.FullName())
			}
		}
	}
	for i := range file.Messages().Len() {
		message := file.Messages().Get(i)
		table := tableOf(text, string(message.Name()))
		if table == "" {
			t.Errorf("the document has no table of the message %s's fields", message.Name())
		}
		for j := range message.Fields().Len() {
			wants(table, "field of "+string(message.Name()), message.Fields().Get(j).Name())
		}
	}
	for i := range file.Enums().Len() {
		enum := file.Enums().Get(i)
		wants(text, "enum", enum.Name())
		for j := range enum.Values().Len() {
			wants(text, "value", enum.Values().Get(j).Name())
		}
	}
}

// tableOf returns what the document says of a message: the lines from the one that begins with its name, or the heading
// that is its name, to the end of the table there. A message without fields has a sentence instead.
func tableOf(text, message string) string {
	begin := regexp.MustCompile("(?m)^(#### )?`" + message + "`(,.*| has no fields\\.)?$").FindStringIndex(text)
	if begin == nil {
		return ""
	}
	rest := text[begin[0]:]
	if strings.HasSuffix(text[:begin[1]], "has no fields.") {
		return rest[:begin[1]-begin[0]]
	}
	table := strings.Index(rest, "\n|")
	if table < 0 {
		return ""
	}
	end := strings.Index(rest[table:], "\n\n")
	if end < 0 {
		return rest
	}
	return rest[:table+end]
}

func TestTheProtocolDocumentNamesEveryErrorAndLimit(t *testing.T) {
	t.Parallel()
	text := protocolDocument(t)
	reasons := reasonConstants(t)
	if len(reasons) < 8 {
		t.Fatalf("found the reasons %v only", reasons)
	}
	for _, reason := range reasons {
		if !strings.Contains(text, "\n| `"+reason+"` |") {
			t.Errorf("the document's table of reasons lacks %s", reason)
		}
	}
	for _, c := range codeTable {
		if name := rpccode.Code(c).String(); !strings.Contains(text, "\n| `"+name+"` |") {
			t.Errorf("the document's table of status codes lacks %s", name)
		}
	}
	cookie := Handshake()
	for _, word := range []string{
		cookie.MagicCookieKey, cookie.MagicCookieValue, errorDomain, metadataSandboxID, metadataExitCode, metadataRetryable,
		protocolsVariable, LabelSession, LabelOwner, LabelAttempt,
	} {
		if !strings.Contains(text, "`"+word+"`") {
			t.Errorf("the document does not name `%s`", word)
		}
	}
	for _, limit := range []string{
		fmt.Sprintf("larger than %d MiB", MaxMessageBytes>>20), fmt.Sprintf("%d KiB at most", messageBytes>>10),
		fmt.Sprintf("%d and %d KiB at most", tailLines, tailBytes>>10), "version " + strconv.Itoa(ProtocolVersion),
	} {
		if !strings.Contains(text, limit) {
			t.Errorf("the document does not say %q", limit)
		}
	}
}

// reasonConstants reads the values of the constants called ReasonX.
func reasonConstants(t *testing.T) []string {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), "error.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var reasons []string
	ast.Inspect(file, func(node ast.Node) bool {
		spec, ok := node.(*ast.ValueSpec)
		if ok && strings.HasPrefix(spec.Names[0].Name, "Reason") {
			value, err := strconv.Unquote(spec.Values[0].(*ast.BasicLit).Value)
			if err != nil {
				t.Fatal(err)
			}
			reasons = append(reasons, value)
		}
		return true
	})
	return reasons
}

var jsonExample = regexp.MustCompile("(?ms)^```json ([A-Za-z.]+)\n(.*?)^```$")

func TestTheProtocolDocumentsExamplesAreWhatGoesOverTheWire(t *testing.T) {
	t.Parallel()
	shown := map[string]bool{}
	for _, example := range jsonExample.FindAllStringSubmatch(protocolDocument(t), -1) {
		name, text := example[1], example[2]
		full := protoreflect.FullName(name)
		if !strings.Contains(name, ".") {
			full = protoreflect.FullName("berth.provider.v1." + name)
		}
		kind, err := protoregistry.GlobalTypes.FindMessageByName(full)
		if err != nil {
			t.Errorf("%s: %v", full, err)
			continue
		}
		message := kind.New().Interface()
		if err := protojson.Unmarshal([]byte(text), message); err != nil {
			t.Errorf("this is no %s: %v\n%s", name, err, text)
			continue
		}
		shown[name] = true
		if sent, ok := message.(*spb.Status); ok {
			checkErrorExample(t, sent, shown)
		}
	}
	for _, service := range []protoreflect.ServiceDescriptor{
		pb.File_berth_provider_v1_provider_proto.Services().ByName("Setup"),
		pb.File_berth_provider_v1_provider_proto.Services().ByName("Provider"),
		pb.File_berth_provider_v1_provider_proto.Services().ByName("Housekeeping"),
	} {
		for i := range service.Methods().Len() {
			method := service.Methods().Get(i)
			for _, message := range []protoreflect.MessageDescriptor{method.Input(), method.Output()} {
				if !shown[string(message.Name())] {
					t.Errorf("there is no example of a %s", message.Name())
				}
			}
		}
	}
	for class, c := range codeTable {
		if !shown[c.String()] {
			t.Errorf("there is no example of an error %s (%s)", c, class)
		}
	}
	for _, reason := range []string{ReasonQuota, ReasonRateLimit, ReasonServerExited, ReasonGone, ReasonPanic} {
		if !shown[reason] {
			t.Errorf("there is no example of an error with the reason %s", reason)
		}
	}
}

// checkErrorExample holds an error of the document to what the SDK makes of the same error.
func checkErrorExample(t *testing.T, sent *spb.Status, shown map[string]bool) {
	t.Helper()
	read := AsError(errorFromWire(t.Context(), "Create", status.FromProto(sent).Err()))
	again := status.Convert(errorToWire(read)).Proto()
	if difference := cmp.Diff(sent, again, protocmp.Transform()); difference != "" {
		t.Errorf("the SDK sends this error of the document in another form:\n%s", difference)
	}
	shown[codeTable[read.Code].String()] = true
	shown[read.Reason] = true
}
