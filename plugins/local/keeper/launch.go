package keeper

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/berth-dev/berth/plugins/local/store"
)

// Argument is the first word of a keeper's command line; the sandbox's directory is the second.
const Argument = "keeper"

// ready is what a keeper writes once it can be controlled. Any other text is the reason why it cannot.
const ready = "ready"

// The descriptors of a new keeper.
const (
	lockDescriptor  = 3
	readyDescriptor = 4
)

// Launch starts a keeper for a sandbox that has none, and returns when it can be controlled. The sandbox is then
// suspended. executable is the plugin's own. lock is the sandbox's keeper lock, which passes to the keeper.
//
// The keeper outlives the caller. It has its own session and log, and inherits nothing but the lock. A keeper that is
// not ready when ctx ends is killed. While the caller lives it is the keeper's parent and must reap it, which a
// goroutine in children does.
func Launch(ctx context.Context, executable string, s store.Store, id string, lock *os.File, children *sync.WaitGroup) error {
	defer lock.Close() // the keeper's copy keeps the lock
	complaints, err := store.Open(filepath.Join(s.Dir(id), "keeper.log"), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer complaints.Close()
	answer, report, err := os.Pipe()
	if err != nil {
		return err
	}
	defer answer.Close()

	command := exec.CommandContext(context.WithoutCancel(ctx), executable, Argument, s.Dir(id))
	command.Dir = "/"
	command.Env = []string{"GOMAXPROCS=2", "GOGC=50"} // keep it small; only settings of the race detector are inherited
	if settings, ok := os.LookupEnv("GORACE"); ok {
		command.Env = append(command.Env, "GORACE="+settings)
	}
	command.Stderr = complaints
	command.ExtraFiles = []*os.File{lock, report}
	command.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	hideDescriptors()
	err = command.Start()
	report.Close()
	if err != nil {
		return fmt.Errorf("starting a keeper: %w", err)
	}
	err = awaitReady(ctx, answer)
	if err != nil {
		_ = command.Process.Kill() // it may have exited by itself
	}
	children.Go(func() { _ = command.Wait() }) // its exit code means nothing
	return err
}

// hideDescriptors keeps the keeper from inheriting the descriptors with which this process was started: somebody may be
// waiting for the end of a pipe that a keeper would keep open for hours.
func hideDescriptors() {
	entries, _ := os.ReadDir("/dev/fd")
	for _, entry := range entries {
		if number, err := strconv.Atoi(entry.Name()); err == nil && number > 2 {
			syscall.CloseOnExec(number)
		}
	}
}

func awaitReady(ctx context.Context, answer *os.File) error {
	stop := context.AfterFunc(ctx, func() { _ = answer.SetReadDeadline(time.Now()) })
	defer stop()
	words, err := io.ReadAll(io.LimitReader(answer, 4<<10))
	switch text := strings.TrimSpace(string(words)); {
	case text == ready:
		return nil
	case ctx.Err() != nil:
		return fmt.Errorf("waiting for the keeper: %w", ctx.Err())
	case err != nil:
		return fmt.Errorf("waiting for the keeper: %w", err)
	case text == "":
		return fmt.Errorf("the keeper ended before it was ready")
	default:
		return fmt.Errorf("the keeper did not start: %s", text)
	}
}
