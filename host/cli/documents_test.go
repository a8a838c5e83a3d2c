package cli

import (
	"bytes"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/berth-dev/berth/internal/docs"
)

// commandLine is a call of berth in a shell's line: at its beginning, or where another command may begin.
var commandLine = regexp.MustCompile(`(?:^|[\s;&|(]|\$\()(?:\S*/)?berth((?: +(?:'[^']*'|"[^"]*"|[^\s|;&)<>"'#` + "`" + `]+))*)`)

// inlineCommand is a call of berth that a sentence quotes.
var inlineCommand = regexp.MustCompile("`(?:bin/)?berth( [^`]+)`")

var word = regexp.MustCompile(`'([^']*)'|"([^"]*)"|(\S+)`)

func wordsOf(text string) []string {
	var words []string
	for _, match := range word.FindAllStringSubmatch(text, -1) {
		words = append(words, match[1]+match[2]+match[3])
	}
	return words
}

// notA returns what is wrong with a command line, or "". A whole one has all its arguments.
func notA(root *cobra.Command, args []string, whole bool) string {
	c, rest, err := root.Find(args)
	switch {
	case err != nil:
		return err.Error()
	case c == root && len(rest) > 0 && !strings.HasPrefix(rest[0], "-"):
		return "there is no command " + rest[0]
	case c.HasSubCommands() && len(c.Flags().Args()) == 0 && len(rest) > 0 && !strings.HasPrefix(rest[0], "-"):
		return "there is no command " + rest[0] + " below " + c.CommandPath()
	}
	err = c.ParseFlags(rest)
	partial := !whole && err != nil && strings.Contains(err.Error(), "needs an argument") // a sentence names the flag alone
	if err != nil && strings.Contains(err.Error(), "help requested") || partial {
		return ""
	}
	if err != nil {
		return err.Error()
	}
	if whole {
		if err := c.ValidateArgs(c.Flags().Args()); err != nil {
			return err.Error()
		}
	}
	return ""
}

func newRoot() *cobra.Command {
	root := newApp(&bytes.Buffer{}, &bytes.Buffer{}, os.LookupEnv).rootCommand()
	root.InitDefaultHelpFlag()
	return root
}

func TestEveryCommandLineInTheDocumentsExists(t *testing.T) {
	t.Parallel()
	found := 0
	for _, document := range docs.Markdown(t, "../..") {
		text, err := os.ReadFile(document)
		if err != nil {
			t.Fatal(err)
		}
		open, kind := false, "" // of a block of code
		for number, line := range strings.Split(strings.ReplaceAll(string(text), "\\\n", " "), "\n") {
			if fence, isFence := strings.CutPrefix(strings.TrimSpace(line), "```"); isFence {
				open, kind = !open, fence
				continue
			}
			calls := inlineCommand.FindAllStringSubmatch(line, -1)
			whole := kind == "sh" || kind == "console" || strings.Contains(line, "bin/berth ") // the last is a crontab
			switch {
			case open && whole && !strings.HasPrefix(strings.TrimSpace(line), "#"):
				calls = commandLine.FindAllStringSubmatch(line, -1)
			case open:
				continue
			}
			for _, call := range calls {
				args := wordsOf(call[1])
				if len(args) == 0 {
					continue
				}
				found++
				if problem := notA(newRoot(), args, open && whole); problem != "" {
					t.Errorf("%s:%d: berth %s: %s", document, number+1, strings.Join(args, " "), problem)
				}
			}
		}
	}
	if found < 60 {
		t.Errorf("only %d command lines were found", found)
	}
}

func TestEveryCommandLineInTheHelpsAndHintsExists(t *testing.T) {
	t.Parallel()
	var visit func(c *cobra.Command)
	found := 0
	check := func(where, text string, whole bool) {
		for line := range strings.Lines(strings.ReplaceAll(text, "\\\n", " ")) {
			example := strings.HasPrefix(line, "  ")
			for _, call := range commandLine.FindAllStringSubmatch(strings.TrimSuffix(line, "\n"), -1) {
				command, _, _ := strings.Cut(call[1], "   ") // an explanation stands apart
				args := wordsOf(command)
				if !example { // the sentence goes on
					args = commandAmong(newRoot(), args)
				}
				if isSentence := !example && whole; isSentence && notA(newRoot(), args, false) != "" {
					continue // berth does something
				}
				if len(args) == 0 {
					continue
				}
				found++
				if problem := notA(newRoot(), args, example && whole); problem != "" {
					t.Errorf("%s: berth %s: %s", where, strings.Join(args, " "), problem)
				}
			}
		}
	}
	visit = func(c *cobra.Command) {
		check("the help of "+c.CommandPath(), c.Long, true)
		for _, below := range c.Commands() {
			if below.Name() != "completion" { // of cobra
				visit(below)
			}
		}
	}
	visit(newRoot())
	for code, advice := range codes {
		check("the hint for "+string(code), advice.hint, false)
	}
	for reason, hint := range reasonHints {
		check("the hint for "+string(reason), hint, false)
	}
	if found < 25 {
		t.Errorf("only %d command lines were found", found)
	}
}

// commandAmong returns the words at the beginning that are commands, or the first word if none is.
func commandAmong(root *cobra.Command, args []string) []string {
	for i := range args {
		args[i] = strings.Trim(args[i], ".,;:")
	}
	for n := min(2, len(args)); n > 0; n-- {
		if c, rest, err := root.Find(args[:n]); err == nil && c != root && len(rest) == 0 {
			return args[:n]
		}
	}
	return args[:min(1, len(args))]
}

func TestWhatIsNoCommandLineIsSeen(t *testing.T) {
	t.Parallel()
	for _, line := range []string{"conect s1", "connect s1 --time 5m", "plugin chek mock", "plugin describe", "connect s1 --timeout 5", "gc now"} {
		if notA(newRoot(), strings.Fields(line), true) == "" {
			t.Errorf("berth %s is taken for a command line", line)
		}
	}
}
