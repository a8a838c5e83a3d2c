package simcloud

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// part makes the test binary play the part of another process.
const part = "BERTH_SIMCLOUD_TEST_PART"

func TestMain(m *testing.M) {
	Main()
	switch os.Getenv(part) {
	case "server":
		playServer()
	case "simulator":
		playSimulator()
	}
	code := m.Run()
	if err := goleak.Find(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// playServer is a server in a box: it returns its name, streams, and speaks another protocol after an upgrade.
func playServer() {
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Seen-Host", r.Host)
		fmt.Fprint(w, os.Getenv("NAME"))
	})
	http.HandleFunc("/stream", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, "first")
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	})
	http.HandleFunc("/break", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
	http.HandleFunc("/upgrade", func(w http.ResponseWriter, r *http.Request) {
		conn, buffered, err := http.NewResponseController(w).Hijack()
		if err != nil {
			panic(err)
		}
		defer conn.Close()
		fmt.Fprint(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
		for {
			line, err := buffered.ReadString('\n')
			if err != nil {
				return
			}
			fmt.Fprint(conn, "echo "+line)
		}
	})
	err := http.ListenAndServe(net.JoinHostPort(os.Getenv("HOST"), "4444"), nil)
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// playSimulator runs a box with a daemon in it, prints the result and waits to be killed.
func playSimulator() {
	box, err := NewBox(BoxOptions{Dir: os.Getenv("DIR"), Env: map[string]string{"MARK": os.Getenv("DIR")}})
	if err == nil {
		_, err = box.Exec(context.Background(), ExecSpec{Argv: []string{"setsid", "sleep", "1000"}})
	}
	fmt.Println("box:", err)
	select {}
}

// newBox returns a box that is closed after the test, or skips the test if this machine cannot run boxes.
func newBox(t *testing.T, options BoxOptions) *Box {
	t.Helper()
	if err := Isolation(); err != nil {
		t.Skip(err)
	}
	if options.Dir == "" {
		options.Dir = filepath.Join(t.TempDir(), "box")
	}
	if options.Env == nil {
		options.Env = map[string]string{}
	}
	options.Env["MARK"] = options.Dir
	box, err := NewBox(options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := box.Close(); err != nil {
			t.Error(err)
		}
		if left := processesOf(options.Dir); len(left) > 0 {
			t.Errorf("processes are left: %v", left)
		}
		if _, err := os.Lstat(options.Dir); err == nil {
			t.Error("the disk is left")
		}
	})
	return box
}

func execute(t *testing.T, box *Box, spec ExecSpec) *Process {
	t.Helper()
	process, err := box.Exec(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	return process
}

func shell(script string) ExecSpec { return ExecSpec{Argv: []string{"sh", "-c", script}} }

func wait(t *testing.T, process *Process) Exit {
	t.Helper()
	exit, err := process.Wait(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return exit
}

// run returns the combined output of a script, which must succeed.
func run(t *testing.T, box *Box, script string) string {
	t.Helper()
	exit, output, err := box.Run(t.Context(), "sh", "-c", script)
	if err != nil {
		t.Fatal(err)
	}
	if exit.Code != 0 {
		t.Fatalf("%s: %+v: %s", script, exit, output.Bytes(Both))
	}
	return strings.TrimSpace(string(output.Bytes(Both)))
}

// serverBox returns a box in which the test's server listens on port 4444.
func serverBox(t *testing.T, name, host string, options BoxOptions) *Box {
	t.Helper()
	options.PathDirs = []string{filepath.Dir(os.Args[0])}
	box := newBox(t, options)
	startServer(t, box, name, host)
	return box
}

func startServer(t *testing.T, box *Box, name, host string) {
	t.Helper()
	execute(t, box, ExecSpec{
		Argv: []string{filepath.Base(os.Args[0])}, Env: map[string]string{part: "server", "NAME": name, "HOST": host},
	})
	eventually(t, "the server listens", func() bool { return box.Listening(4444) })
}

// processesOf returns the processes with a word in their environment.
func processesOf(word string) []string {
	var found []string
	paths, _ := filepath.Glob("/proc/[0-9]*/environ")
	for _, path := range paths {
		if content, _ := os.ReadFile(path); strings.Contains(string(content), word) {
			found = append(found, filepath.Dir(path))
		}
	}
	return found
}

func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !condition(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain until %s", what)
		}
	}
}
