package providertest

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/xml"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/berth-dev/berth/internal/testbin"
)

func TestEveryCheckHasAUniqueNameAContractAndAFix(t *testing.T) {
	t.Parallel()
	name := regexp.MustCompile(`^[a-z]+(-[a-z]+)*$`)
	seen := map[string]bool{}
	for _, c := range checks {
		if !name.MatchString(c.group) || !name.MatchString(c.name) || seen[c.id()] {
			t.Errorf("%q is not a name, or is there twice", c.id())
		}
		if !strings.HasSuffix(c.contract, ".") || !strings.HasSuffix(c.fix, ".") {
			t.Errorf("%s: the contract and the fix are sentences", c.id())
		}
		seen[c.id()] = true
	}
	for id := range unbreakable {
		if !seen[id] {
			t.Errorf("there is no check %s", id)
		}
	}
}

var someReport = Report{
	Plugin: "bin/acme", Name: "acme", Version: "1.2", Duration: 1500 * time.Millisecond,
	Results: []Result{
		{Group: "create", Name: "once", Status: Pass, Contract: "One.", Duration: time.Millisecond},
		{Group: "create", Name: "labels", Status: Fail, Contract: "Labels.", Detail: "there are <none>\x01", Fix: "Add them.", Duration: 2 * time.Second},
		{Group: "ping", Name: "slow", Status: Skip, Contract: "Slow.", Detail: "no clock"},
	},
}

func TestAReportAsText(t *testing.T) {
	t.Parallel()
	var text strings.Builder
	if err := someReport.WriteText(&text); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"PASS  create/once ", "FAIL  create/labels  2s ", "SKIP  ping/slow ", "no clock\n",
		"\ncreate/labels\n  contract  Labels.\n  seen      there are <none>", "\n  fix       Add them.\n",
		"acme 1.2 (bin/acme): 1 passed, 1 failed, 1 skipped in 1.5s\n",
	} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("%q is missing in\n%s", want, &text)
		}
	}
}

func TestAReportAsJUnit(t *testing.T) {
	t.Parallel()
	var text strings.Builder
	if err := someReport.WriteJUnit(&text); err != nil {
		t.Fatal(err)
	}
	var read junitSuites
	if err := xml.Unmarshal([]byte(text.String()), &read); err != nil {
		t.Fatalf("%v:\n%s", err, &text)
	}
	if read.Tests != 3 || read.Failures != 1 || read.Skipped != 1 || len(read.Suites) != 2 {
		t.Errorf("%+v", read)
	}
	failed := read.Suites[0].Cases[1]
	if failed.Name != "labels" || failed.Class != "acme.create" || failed.Time != "2.000" || failed.Failure == nil ||
		failed.Failure.Message != "there are <none>" || !strings.Contains(failed.Failure.Text, "Add them.") {
		t.Errorf("%+v", failed)
	}
	if read.Suites[1].Cases[0].Skipped == nil || read.Suites[0].Cases[0].Failure != nil {
		t.Errorf("%+v", read.Suites)
	}
}

func TestAReportAsJSONHasWordsForWhatBecameOfEachCheck(t *testing.T) {
	t.Parallel()
	text, err := json.Marshal(someReport)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"plugin":"bin/acme"`, `"group":"create","name":"labels","status":"fail"`, `"fix":"Add them."`, `"duration_ms":`} {
		if !strings.Contains(string(text), want) {
			t.Errorf("%s is missing in %s", want, text)
		}
	}
}

func TestAPatternMustMatchACheck(t *testing.T) {
	t.Parallel()
	for only, fine := range map[string]bool{
		"": true, "ping/*": true, "*/once": true, "create/once,ping/redirect": true,
		"create/onse": false, "ping": false, "[": false, "create/once,": false,
	} {
		if err := CheckOnly(only); (err == nil) != fine {
			t.Errorf("%q: %v", only, err)
		}
	}
}

// What is not a plugin fails the first check, says why, and takes no time.
func TestWhatIsNotAPluginFailsTheHandshake(t *testing.T) {
	t.Parallel()
	for path, want := range map[string]string{
		"/bin/echo":           "instead of a handshake",
		"/bin/false":          "ended before its handshake",
		"/nonexistent/plugin": "no such file",
	} {
		report := newSuite(Plugin{Path: path}, paceFor("")).run(t.Context(), nil)
		if first := report.Results[0]; first.Name != "handshake" || first.Status != Fail || !strings.Contains(first.Detail, want) {
			t.Errorf("%s: %+v", path, first)
		}
		if report.Count(Fail) != 1 || report.Count(Pass) > 0 {
			t.Errorf("%s: %s", path, report.Summary())
		}
	}
}

// A host and an author see more than the last line of a plugin that dies on its way up.
func TestAPluginThatDiesBeforeItsHandshakeShowsItsLastLines(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "plugin")
	script := "#!/bin/sh\nfor n in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22; do echo \"line $n\" >&2; done\n" +
		"printf '\\033[31mModuleNotFoundError: grpc\\r\\n' >&2\nexit 3\n"
	if err := os.WriteFile(path, []byte(script), 0o700); err != nil { //nolint:gosec // it is executed
		t.Fatal(err)
	}
	report := newSuite(Plugin{Path: path}, paceFor("")).run(t.Context(), nil)
	detail := report.Results[0].Detail
	for want, there := range map[string]bool{
		"exit status 3": true, "    line 4\n": true, "    line 22\n": true, "line 3\n": false, `\x1b[31mModuleNotFoundError: grpc`: true, "\x1b": false, "\r": false,
	} {
		if strings.Contains(detail, want) != there {
			t.Errorf("%q is there: %t\n%s", want, !there, detail)
		}
	}
}

func TestOnlyRunsWhatIsAskedForAndWhatItNeeds(t *testing.T) {
	t.Parallel()
	p := mockPlugin(t, "")
	p.Only = "create/labels"
	s := newSuite(p, paceFor(""))
	report := s.run(t.Context(), nil)
	if len(report.Results) != 1 || report.Count(Pass) != 1 || len(s.made) != 1 || len(s.instances) != 1 {
		t.Errorf("%d checks, %d sandboxes and %d processes for one check\n%+v", len(report.Results), len(s.made), len(s.instances), report.Results)
	}
}

// Clouds list late, which is no fault of the plugin.
func TestAListingThatLagsIsNoFault(t *testing.T) {
	t.Parallel()
	p := mockPlugin(t, "")
	p.Config["faults"] = []string{"list=lag:700ms"}
	if report := newSuite(p, paceFor("")).run(t.Context(), nil); report.Failed() {
		_ = report.WriteText(t.Output())
		t.Fail()
	}
}

func TestSecretsAreFoundInTheFormsInWhichTheyTravel(t *testing.T) {
	t.Parallel()
	s := newSuite(Plugin{}, paceFor(""))
	const secret = "s3cret+/=&key?"
	s.keepSecret(secret, "the key")
	for form, text := range map[string]string{
		"as it is": "key=" + secret, "in basic authentication": base64.StdEncoding.EncodeToString([]byte("user:" + secret)),
		"in basic authentication of another user": base64.StdEncoding.EncodeToString([]byte("users:" + secret + ":")),
		"in base64 for URLs":                      base64.URLEncoding.EncodeToString([]byte(secret)), "in hex": hex.EncodeToString([]byte("x" + secret)),
		"in HEX": strings.ToUpper(hex.EncodeToString([]byte(secret))), "in a query": "?k=" + url.QueryEscape(secret),
		"in a path": "/" + url.PathEscape(secret), "in JSON": `{"k": "s3cret+/=\u0026key?"}`,
	} {
		if _, found := s.shown([]byte("before " + text + " after")); !found {
			t.Errorf("%s it is not found: %s", form, text)
		}
	}
	if what, found := s.shown([]byte("s3cret, key, " + base64.StdEncoding.EncodeToString([]byte("another text of that length")))); found {
		t.Errorf("%s is found where it is not", what)
	}
}

func TestAnInterruptedRunRemovesWhatItMade(t *testing.T) {
	t.Parallel()
	ctx, interrupt := context.WithCancel(t.Context())
	defer interrupt()
	p := mockPlugin(t, "")
	p.Path = testbin.Build(t, "./plugins/mock")
	report := newSuite(p, paceFor("")).run(ctx, func(r Result) {
		if r.Name == "labels" && r.Status == Pass { // there is a sandbox
			interrupt()
		}
	})
	skipped, last := 0, Result{}
	for _, r := range report.Results {
		if r.Detail == "the run was interrupted" {
			skipped++
		}
		if r.Name == "nothing-left" {
			last = r
		}
	}
	if skipped == 0 || last.Status != Pass || report.Failed() {
		t.Errorf("%d checks were interrupted, at the end %+v; %s", skipped, last, report.Summary())
	}
}
