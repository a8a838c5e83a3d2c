package provider

import (
	"maps"
	"slices"
	"strings"
)

const (
	// LongestWord is how many bytes a word of a command, or a variable with its name, may have: Linux starts no program with
	// more than 128 KiB in one.
	LongestWord = 128<<10 - 1
	// mostWords is how many bytes all of them may have together. Linux takes more, of which the sandbox has its own part;
	// macOS takes hardly more.
	mostWords = 1_000_000
)

// CheckProcess refuses what no process can be started with, so that a plugin can do so before it makes anything: it would be
// taken for an outage later, and tried again for ever. overhead is how many bytes the plugin's own way of starting servers
// adds to each variable. The error names the variable, never its value.
func CheckProcess(command []string, env map[string]string, workdir string, overhead int) error {
	if len(command) == 0 || command[0] == "" {
		return Errorf(CodeInvalid, "the server has no command")
	}
	total := 0
	for _, name := range slices.Sorted(maps.Keys(env)) {
		size := len(name) + len("=") + len(env[name])
		total += size + overhead
		switch {
		case name == "" || strings.ContainsAny(name, "=\x00"):
			return Errorf(CodeInvalid, "%.100q cannot be the name of an environment variable", name)
		case strings.ContainsRune(env[name], 0):
			return Errorf(CodeInvalid, "the environment variable %.100s holds a zero byte", name)
		case size+overhead > LongestWord:
			return Errorf(CodeInvalid, "the environment variable %.100s has %d bytes with its name, and no program can be started with more than "+
				"%d in one: let the server read it from a file", name, size, LongestWord-overhead)
		}
	}
	for i, word := range command {
		total += len(word)
		switch {
		case len(word) > LongestWord:
			return Errorf(CodeInvalid, "word %d of the server's command has %d bytes, and no program can be started with more than %d in one: "+
				"let the server read it from a file", i+1, len(word), LongestWord)
		case strings.ContainsRune(word, 0):
			return Errorf(CodeInvalid, "word %d of the server's command holds a zero byte", i+1)
		}
	}
	switch {
	case strings.ContainsRune(workdir, 0):
		return Errorf(CodeInvalid, "the server's working directory holds a zero byte")
	case len(workdir) > 4096:
		return Errorf(CodeInvalid, "the server's working directory has %d bytes, and no path more than 4096", len(workdir))
	case total > mostWords:
		return Errorf(CodeInvalid, "the server's command and environment have %d bytes together, and programs are started with %d at most; the largest "+
			"variable is %.100s", total, mostWords, largest(env))
	}
	return nil
}

func largest(env map[string]string) string {
	return slices.MaxFunc(append(slices.Sorted(maps.Keys(env)), ""), func(a, b string) int { return len(env[a]) - len(env[b]) })
}
