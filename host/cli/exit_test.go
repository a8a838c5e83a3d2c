package cli

import (
	"bytes"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/berth-dev/berth/host/connect"
)

func TestEveryCodeOfConnectHasAnExitCode(t *testing.T) {
	t.Parallel()
	file, err := parser.ParseFile(token.NewFileSet(), "../connect/error.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	ast.Inspect(file, func(node ast.Node) bool {
		spec, ok := node.(*ast.ValueSpec)
		if !ok || fmt.Sprint(spec.Type) != "Code" {
			return true
		}
		found++
		word, _ := strconv.Unquote(spec.Values[0].(*ast.BasicLit).Value)
		if advice, known := codes[connect.Code(word)]; !known || advice.exit == exitOK {
			t.Errorf("%s has none", spec.Names[0])
		}
		return true
	})
	if found != len(codes) || found == 0 {
		t.Errorf("%d codes, %d of them with advice", found, len(codes))
	}
	if adviceOn("a code of tomorrow").exit != exitOther {
		t.Error("a failure of an unknown kind is no success")
	}
}

func TestFlagHintAndExitCodeAgreeForEveryCode(t *testing.T) {
	t.Parallel()
	for code, advice := range codes {
		for _, noticed := range []bool{false, true} {
			failure, exit := newApp(&bytes.Buffer{}, &bytes.Buffer{}, os.LookupEnv).failure(
				commandError{&connect.Error{Code: code, Message: "it failed", Retryable: noticed}})
			if exit != advice.exit || failure.Retryable != (advice.again == always || advice.again == sometimes && noticed) {
				t.Errorf("%s, noticed as retryable: %t: exit code %d, %+v", code, noticed, exit, failure)
			}
			tellsToTry := strings.Contains(failure.Hint, "try again")
			if tellsToTry && !failure.Retryable || advice.again == always && !tellsToTry {
				t.Errorf("%s: retryable is %t, and the hint is %q", code, failure.Retryable, failure.Hint)
			}
		}
		final := map[int]bool{exitUsage: true, exitDenied: true, exitNotFound: true, exitInterrupted: true} // for scripts
		if final[advice.exit] && advice.again != never {
			t.Errorf("%s: the exit code %d is that of what stays as it is", code, advice.exit)
		}
	}
	if codes[connect.CodeBusy].again != always {
		t.Error("another host is at work for a while only")
	}
}

func TestTheExitCodesAreThoseOfTheHelp(t *testing.T) {
	t.Parallel()
	a := newApp(&bytes.Buffer{}, &bytes.Buffer{}, os.LookupEnv)
	help := strings.Join(strings.Fields(a.rootCommand().Long), " ")
	for word, code := range map[string]int{
		"done": exitOK, "other failure": exitOther, "usage or configuration": exitUsage, "denied": exitDenied,
		"not found": exitNotFound, "quota or rate limit": exitQuota, "create or start failed": exitFailed,
		"the server did not become healthy": exitUnhealthy, "plugin failed": exitPlugin, "deadline": exitDeadline,
		"interrupted": exitInterrupted,
	} {
		entry := fmt.Sprintf("%d %s", code, word)
		if !strings.Contains(help, entry) {
			t.Errorf("%q is missing in %s", entry, help)
		}
	}
}

func TestTheExitCodesAreThoseOfTheREADME(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(text), "\n## Exit codes\n")
	section, _, _ = strings.Cut(section, "\n## ")
	listed := map[string]int{}
	for line := range strings.Lines(section) {
		columns := strings.Split(line, "|")
		if len(columns) != 5 {
			continue
		}
		code, err := strconv.Atoi(strings.TrimSpace(columns[1]))
		if err != nil { // the heading
			continue
		}
		for word := range strings.SplitSeq(columns[3], ",") {
			if word = strings.Trim(word, " `"); word != "" {
				listed[word] = code
			}
		}
	}
	want := map[string]int{"usage": exitUsage}
	for code, advice := range codes {
		want[string(code)] = advice.exit
	}
	if !maps.Equal(listed, want) {
		t.Errorf("it lists\n%v, and there are\n%v", listed, want)
	}
}

func TestAFailureIsRedactedInEveryField(t *testing.T) {
	t.Parallel()
	const secret = "sk-live-0123456789"
	var stdout, stderr bytes.Buffer
	a := newApp(&stdout, &stderr, os.LookupEnv)
	root := a.rootCommand()
	a.flags.output = "json"
	a.secrets.Add(secret)
	err := commandError{&connect.Error{
		Code: connect.CodeCreateFailed, Session: "s1", Message: "with " + secret, LogTail: []string{"KEY=" + secret},
		Cleanup: connect.CleanupFailed, CleanupError: "deleting with " + secret, Cause: errors.New(secret),
	}}
	if code := a.end(t.Context(), root, err); code != exitFailed {
		t.Errorf("exit code %d", code)
	}
	for _, text := range []string{stdout.String(), stderr.String()} {
		if strings.Contains(text, secret) || strings.Count(text, "[redacted]") < 3 {
			t.Errorf("%s", text)
		}
	}
}
