// Command quickstart shows on one page how an agent platform uses berth: it connects a session, runs an action on the
// connected server, and disconnects. `make run` runs it on the local provider.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := quickstart(ctx, "quickstart")
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "quickstart:", err)
		os.Exit(1)
	}
}

func quickstart(ctx context.Context, session string) (err error) {
	fmt.Println("$ berth connect", session)
	connection, err := connect(ctx, session)
	if err != nil {
		return err
	}
	defer func() {
		fmt.Println("$ berth disconnect", session)
		// Also after Ctrl-C: a sandbox that nobody destroys costs money.
		if disconnectErr := berth(context.WithoutCancel(ctx), os.Stdout, "disconnect", session); err == nil {
			err = disconnectErr
		}
	}()
	fmt.Printf("  sandbox %s (%s) at %s, ready in %.0f ms\n",
		connection.Sandbox.ID, connection.Sandbox.Origin, connection.URL, connection.Timings["total"])

	const command = "echo hello from $(pwd); uname -sm"
	fmt.Println("$ POST /execute_action:", command)
	output, err := execute(ctx, connection, command)
	if err != nil {
		return err
	}
	fmt.Println(output)
	return nil
}

// connection is the part of `berth connect -o json` that is used here.
type connection struct {
	Sandbox struct{ ID, Origin string }
	URL     string
	Headers map[string]string
	Timings map[string]float64 `json:"timings_ms"`
}

func connect(ctx context.Context, session string) (connection, error) {
	var result connection
	var stdout bytes.Buffer
	if err := berth(ctx, &stdout, "connect", session, "-o", "json"); err != nil {
		return result, err
	}
	return result, json.Unmarshal(stdout.Bytes(), &result)
}

// berth runs the berth command. Its progress and its errors go to our standard error.
func berth(ctx context.Context, stdout io.Writer, args ...string) error {
	command := exec.CommandContext(ctx, "bin/berth", args...)
	command.Stdout, command.Stderr = stdout, os.Stderr
	// An interrupted berth undoes what it made, so let it finish.
	command.Cancel = func() error { return command.Process.Signal(os.Interrupt) }
	command.WaitDelay = time.Minute
	return command.Run()
}

func execute(ctx context.Context, c connection, command string) (string, error) {
	action, err := json.Marshal(map[string]any{
		"action": map[string]any{"action": "run", "args": map[string]any{"command": command}},
	})
	if err != nil {
		return "", err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, c.URL+"/execute_action", bytes.NewReader(action))
	if err != nil {
		return "", err
	}
	request.Header.Set("Content-Type", "application/json")
	for name, value := range c.Headers {
		request.Header.Set(name, value)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return "", err
	}
	if response.StatusCode != http.StatusOK {
		return "", fmt.Errorf("the server answered %s: %s", response.Status, body)
	}
	var observation struct{ Content string }
	return observation.Content, json.Unmarshal(body, &observation)
}
