package provider

import (
	"strings"
	"testing"
)

func TestWhatNoProcessCanBeStartedWithIsRefusedByItsName(t *testing.T) {
	t.Parallel()
	run := []string{"serve", "--port", "8000"}
	many := map[string]string{"LARGEST": strings.Repeat("x", 100_000)}
	for _, name := range strings.Split("abcdefghijkl", "") {
		many[name] = strings.Repeat("x", 90_000)
	}
	for name, test := range map[string]struct {
		command []string
		env     map[string]string
		workdir string
		says    string
	}{
		"fine":          {run, map[string]string{"A": "1", "EMPTY": ""}, "/srv", ""},
		"just fits":     {run, map[string]string{"PROMPT": strings.Repeat("p", LongestWord-len("PROMPT=")-10)}, "", ""},
		"one too long":  {run, map[string]string{"PROMPT": strings.Repeat("p", LongestWord-len("PROMPT=")-9)}, "", "variable PROMPT has 131062 bytes"},
		"all too long":  {run, many, "", "largest variable is LARGEST"},
		"long word":     {append(run, strings.Repeat("w", LongestWord+1)), nil, "", "word 4 of the server's command"},
		"no command":    {nil, nil, "", "no command"},
		"empty command": {[]string{""}, nil, "", "no command"},
		"zero in value": {run, map[string]string{"A": "a\x00b"}, "", "variable A holds a zero byte"},
		"zero in word":  {append(run, "\x00"), nil, "", "zero byte"},
		"zero in dir":   {run, nil, "/\x00", "zero byte"},
		"long dir":      {run, nil, "/" + strings.Repeat("d", 4096), "working directory has 4097 bytes"},
		"name with =":   {run, map[string]string{"A=B": "1"}, "", "cannot be the name"},
	} {
		err := CheckProcess(test.command, test.env, test.workdir, 10)
		if test.says == "" {
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		if e := AsError(err); e == nil || e.Code != CodeInvalid || e.Retryable || !strings.Contains(e.Message, test.says) || len(e.Message) > 400 {
			t.Errorf("%s: %.500v", name, err)
		}
	}
}
