package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestAccount follows a report to its judgement: what was noticed, what a reason excuses, what is left.
func TestAccount(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	if err := os.MkdirAll("host/x", 0o755); err != nil {
		t.Fatal(err)
	}
	source := "package x\nvar _ = a < b\nconst limit = 10 * second\nfunc f() { x++ }\nvar s = a + \": \" + b\n"
	if err := os.WriteFile(filepath.Join("host", "x", "x.go"), []byte(source), 0o644); err != nil {
		t.Fatal(err)
	}
	report := `{"files":[{"file_name":"x.go","mutations":[
		{"type":"CONDITIONALS_BOUNDARY","status":"LIVED","line":2,"column":7},
		{"type":"CONDITIONALS_NEGATION","status":"KILLED","line":2,"column":7},
		{"type":"ARITHMETIC_BASE","status":"NOT COVERED","line":3,"column":20},
		{"type":"INCREMENT_DECREMENT","status":"TIMED OUT","line":4,"column":3},
		{"type":"INCREMENT_DECREMENT","status":"NOT VIABLE","line":4,"column":3},
		{"type":"ARITHMETIC_BASE","status":"KILLED","line":5,"column":11},
		{"type":"ARITHMETIC_BASE","status":"KILLED","line":5,"column":18}]}]}`
	mutations, err := decode("host/x", []byte(report))
	if err != nil {
		t.Fatal(err)
	}

	reasons := func(text string) map[string]*reason {
		got, err := readReasons(text)
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	none := reasons("# nothing\n")
	a := count("host/x", mutations, none)
	if a.killed != 2 || a.survived != 1 || a.unreached != 1 || len(a.left) != 2 {
		t.Errorf("without reasons: %+v", a)
	}
	if err := judge([]account{a}, none, []string{"host/x"}); err == nil {
		t.Error("a package under its marks was let through")
	}

	both := reasons("host/x/x.go | CONDITIONALS_BOUNDARY | var _ = a < b | they are never equal\n" +
		"host/x/x.go | ARITHMETIC_BASE | const limit = 10 * second | nobody waits that long\n")
	a = count("host/x", mutations, both)
	if a.excused != 2 || a.percentKilled() != 100 || a.percentReached() != 100 {
		t.Errorf("with reasons: %+v", a)
	}
	if err := judge([]account{a}, both, []string{"host/x"}); err != nil {
		t.Error(err)
	}

	stale := reasons("host/x/x.go | CONDITIONALS_BOUNDARY | if c < d { | it is gone\n")
	if err := judge(nil, stale, []string{"host/x"}); err == nil || !strings.Contains(err.Error(), "if c < d {") {
		t.Errorf("a reason that explains nothing: %v", err)
	}
	if _, err := readReasons("host/x/x.go | KIND | source without a reason"); err == nil {
		t.Error("a line without a reason was accepted")
	}
}

func TestMutate(t *testing.T) {
	t.Parallel()
	source := []byte("package x\n\tcase a <= b:\n\tx++\n")
	for _, test := range []struct {
		m    mutation
		want string
	}{
		{mutation{Kind: "CONDITIONALS_BOUNDARY", Line: 2, Column: 9}, "package x\n\tcase a < b:\n\tx++\n"},
		{mutation{Kind: "CONDITIONALS_NEGATION", Line: 2, Column: 9}, "package x\n\tcase a > b:\n\tx++\n"},
		{mutation{Kind: "INCREMENT_DECREMENT", Line: 3, Column: 3}, "package x\n\tcase a <= b:\n\tx--\n"},
	} {
		got, err := mutate(source, test.m)
		if err != nil || string(got) != test.want {
			t.Errorf("%s: %q, %v", test.m.Kind, got, err)
		}
	}
	if got, err := mutate(source, mutation{Kind: "CONDITIONALS_NEGATION", Line: 3, Column: 2}); err == nil {
		t.Errorf("a place without a comparison became %q", got)
	}
}
