package cli_test

import (
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// undone checks the end of a connect that was interrupted.
func undone(t *testing.T, c *command, within time.Duration) {
	t.Helper()
	began := time.Now()
	r := c.wait()
	took := time.Since(began)
	f := r.failure(t)
	if r.code != 130 || f.Code != "cancelled" || f.Cleanup != "done" || took > within {
		t.Errorf("exit code %d after %s: %+v", r.code, took, f)
	}
	wants(t, r.stderr, "interrupted, undoing", "nothing of this attempt is left")
	c.leavesNothing()
}

func TestAnInterruptedHealthWaitIsUndone(t *testing.T) {
	t.Parallel()
	for name, sig := range map[string]syscall.Signal{
		"interrupt": syscall.SIGINT, "terminate": syscall.SIGTERM, "hang up": syscall.SIGHUP,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if signal.Ignored(sig) {
				t.Skipf("%s is ignored here, as nohup has it, and so by every process that is started", sig)
			}
			m := newMachine(t)
			m.configure(customServer("exec sleep 1000") + localBlock)
			c := m.start("connect", "s1", "-o", "json").saying("starting the server (")
			c.interrupt(sig)
			undone(t, c, 5*time.Second)
		})
	}
}

func TestAnInterruptedCreateIsUndone(t *testing.T) {
	t.Parallel()
	for name, attributes := range map[string][]string{
		"before it had an effect":  {faults("create=hang")},
		"with an effect":           {faults("create=hang_after")},
		"whatever the plugin does": {faults("create=ignore_cancel:1h", "create=delay:1h")},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newMachine(t)
			m.configureMock(attributes...)
			c := m.start("connect", "s1", "-o", "json")
			m.eventually("the create is under way", func() bool {
				calls, _ := os.ReadFile(filepath.Join(m.dir, "cloud-mock.json"))
				return strings.Contains(string(calls), `"create": 1`)
			})
			c.interrupt(syscall.SIGINT)
			undone(t, c, 20*time.Second)
		})
	}
}

func TestWhatAnInterruptedConnectFoundIsLeftAlone(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	m.configureMock()
	id := m.connect("s1").Sandbox.ID
	m.fine("disconnect", "s1", "--action", "suspend")
	m.configureMock(faults("ping=not_yet"))
	c := m.start("connect", "s1", "-o", "json").saying("starting the server (")
	c.interrupt(syscall.SIGINT)
	r := c.wait()
	if f := r.failure(t); r.code != 130 || f.Code != "cancelled" || f.Cleanup != "kept" {
		t.Errorf("exit code %d: %+v", r.code, f)
	}
	if list := m.sessions(); len(list) != 1 || list[0].SandboxID != id {
		t.Errorf("%+v", list)
	}
}

func TestAnInterruptThatArrivesTwiceIsOneInterrupt(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	m.configureMock(faults("ping=not_yet", "destroy=delay:500ms"))
	c := m.start("connect", "s1", "-o", "json").saying("starting the server (")
	c.interrupt(syscall.SIGTERM) // as timeout(1) does: to the process, and to the group
	c.saying("undoing").interrupt(syscall.SIGTERM)
	undone(t, c, 20*time.Second)
}

func TestASecondInterruptLeavesAtOnce(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	m.configureMock(faults("ping=not_yet", "destroy=hang"))
	c := m.start("connect", "s1", "-o", "json").saying("starting the server (")
	c.interrupt(syscall.SIGINT)
	first := time.Now()
	c.eventually("a second has passed", func() bool { return time.Since(first) > 1200*time.Millisecond })
	c.interrupt(syscall.SIGINT)
	began := time.Now()
	r := c.wait()
	if took := time.Since(began); r.code != 130 || took > 5*time.Second {
		t.Errorf("exit code %d after %s", r.code, took)
	}
	wants(t, r.stderr, "left without undoing", "berth sessions")
	m.eventually("no process is left", func() bool { return len(m.processes()) == 0 })
	m.configureMock()
	if list := m.sessions(); len(list) != 1 {
		t.Errorf("there is nothing to show: %+v", list)
	}
}

func TestEveryOtherCommandCanBeInterruptedToo(t *testing.T) {
	t.Parallel()
	for _, args := range []string{"ping s1", "sessions", "disconnect s1", "hold s1", "gc", "doctor", "config check"} {
		t.Run(args, func(t *testing.T) {
			t.Parallel()
			m := newMachine(t)
			hangs := "list=hang"
			if args == "config check" {
				hangs = "configure=hang"
			}
			m.configureMock(faults(hangs))
			c := m.start(append(strings.Fields(args), "-o", "json", "--log-level", "trace")...)
			c.plugin()
			c.interrupt(syscall.SIGINT)
			began := time.Now()
			r := c.wait()
			if took := time.Since(began); r.code != 130 || took > 10*time.Second {
				t.Errorf("exit code %d after %s: %s%s", r.code, took, r.stdout, r.stderr)
			}
			wants(t, r.stdout, `"cancelled"`)
			wants(t, r.stderr, "interrupted")
			if strings.Contains(r.stderr, "undoing what was made") {
				t.Errorf("it makes nothing that it could undo:\n%s", r.stderr)
			}
			m.eventually("no process is left", func() bool { return len(m.processes()) == 0 })
		})
	}
}

func TestAKilledHostsSocketsGoWithTheNextRecover(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	m.configureMock(faults("create=hang"))
	c := m.start("connect", "s1")
	c.plugin()
	sockets := func() int {
		entries, err := os.ReadDir(m.sockets)
		must(t, err)
		return len(entries)
	}
	m.eventually("its plugin has a socket", func() bool { return sockets() == 1 })
	m.fine("sessions") // of another host, which starts a plugin
	if n := sockets(); n != 1 {
		t.Errorf("%d directories of sockets while the host is alive", n)
	}
	must(t, c.exec.Process.Kill())
	_ = c.exec.Wait()
	c.stop()
	m.fine("recover")
	m.leavesNothing()
}

func TestPluginsInheritNoDescriptors(t *testing.T) {
	t.Parallel()
	if runtime.GOOS != "linux" {
		t.Skip("/proc is missing, which tells what a process has open")
	}
	m := newMachine(t)
	m.configureMock(faults("create=hang"))
	private, err := os.Create(filepath.Join(m.dir, "private"))
	must(t, err)
	defer private.Close()
	c := m.prepare("connect", "s1")
	c.exec.ExtraFiles = []*os.File{private}
	must(t, c.exec.Start())
	descriptors := filepath.Join("/proc", strconv.Itoa(c.plugin()), "fd")
	names, err := os.ReadDir(descriptors)
	must(t, err)
	for _, name := range names {
		if target, _ := os.Readlink(filepath.Join(descriptors, name.Name())); target == private.Name() {
			t.Errorf("the plugin has descriptor %s of its host", name.Name())
		}
	}
	if len(names) < 3 {
		t.Errorf("only %d descriptors were looked at", len(names))
	}
	c.interrupt(syscall.SIGINT)
	c.wait()
}
