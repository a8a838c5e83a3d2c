package simcloud

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// keeper is process 1 of a box. It sets up the box, then does what the simulator requests. See machine.
type keeper struct {
	conn *net.UnixConn

	mutex   sync.Mutex
	running map[int]int // requests by the number of the running process
}

// keepBox runs a keeper until the box ends. It returns the exit code.
func keepBox(encoded string) int {
	file := os.NewFile(3, "simulator")
	conn, err := net.FileConn(file)
	file.Close()
	if err != nil {
		fmt.Fprintln(os.Stderr, "this process keeps a simulated sandbox and is started by a simulator only:", err)
		return 1
	}
	k := &keeper{conn: conn.(*net.UnixConn), running: map[int]int{}}
	children := make(chan os.Signal, 1)
	signal.Notify(children, unix.SIGCHLD)
	go k.reap(children)

	if err := setUp(encoded); err != nil {
		k.say(reply{Fail: failureOf(err)})
		return 1
	}
	k.say(reply{})
	data, oob := make([]byte, messageLimit), make([]byte, unix.CmsgSpace(3*4))
	for {
		n, oobn, _, _, err := k.conn.ReadMsgUnix(data, oob)
		if err != nil {
			return 0 // the simulator ended or wants the box to end
		}
		var asked request
		files := receivedFiles(oob[:oobn])
		if err := json.Unmarshal(data[:n], &asked); err != nil {
			fmt.Fprintln(os.Stderr, "keeper of a simulated sandbox:", err)
			return 1
		}
		switch {
		case asked.Argv != nil:
			k.exec(asked, files)
		case asked.Address != "":
			go k.dial(asked)
		default:
			k.say(reply{ID: asked.ID, Fail: failureOf(os.NewSyscallError("kill", unix.Kill(asked.PID, asked.Signal)))})
		}
		closeFiles(files)
	}
}

func (k *keeper) say(said reply, fds ...int) {
	data, err := json.Marshal(said)
	if err == nil {
		_, _, err = k.conn.WriteMsgUnix(data, unix.UnixRights(fds...), nil)
	}
	if err != nil { // the simulator has ended
		os.Exit(0)
	}
}

func (k *keeper) exec(asked request, files []*os.File) {
	// Locked until the reply is sent, so that the end of the process is reported after it.
	k.mutex.Lock()
	defer k.mutex.Unlock()
	pid, err := start(asked, files)
	if err == nil {
		k.running[pid] = asked.ID
	}
	k.say(reply{ID: asked.ID, PID: pid, Fail: failureOf(err)})
}

func start(asked request, files []*os.File) (int, error) {
	if info, err := os.Stat(asked.Dir); err != nil {
		return 0, &fs.PathError{Op: "chdir", Path: asked.Dir, Err: errnoOf(err)}
	} else if !info.IsDir() {
		return 0, &fs.PathError{Op: "chdir", Path: asked.Dir, Err: unix.ENOTDIR}
	}
	path := asked.Argv[0]
	if !strings.Contains(path, "/") { // otherwise the kernel resolves it, from the process's directory
		found, err := exec.LookPath(path)
		if err != nil {
			return 0, &fs.PathError{Op: "exec", Path: path, Err: errnoOf(err)}
		}
		path = found
	}
	attributes := &syscall.ProcAttr{Dir: asked.Dir, Env: asked.Env, Sys: &syscall.SysProcAttr{Setpgid: true}}
	if asked.UID != 0 {
		attributes.Sys.Credential = &syscall.Credential{Uid: uint32(asked.UID), Gid: uint32(asked.UID)}
	}
	for _, file := range files {
		attributes.Files = append(attributes.Files, file.Fd())
	}
	pid, err := syscall.ForkExec(path, asked.Argv, attributes)
	if err != nil {
		return 0, &fs.PathError{Op: "exec", Path: path, Err: errnoOf(err)}
	}
	return pid, nil
}

// dial connects within the box's network and passes on the connection.
func (k *keeper) dial(asked request) {
	conn, err := (&net.Dialer{Timeout: 10 * time.Second}).DialContext(context.Background(), "tcp", asked.Address)
	if err != nil {
		k.say(reply{ID: asked.ID, Fail: failureOf(err)})
		return
	}
	file, err := conn.(*net.TCPConn).File()
	conn.Close()
	if err != nil {
		k.say(reply{ID: asked.ID, Fail: failureOf(err)})
		return
	}
	k.say(reply{ID: asked.ID}, int(file.Fd()))
	file.Close()
}

// reap collects processes that have ended: those requested, and orphans.
func (k *keeper) reap(children <-chan os.Signal) {
	for range children {
		for k.collect() {
		}
	}
}

func (k *keeper) collect() bool {
	k.mutex.Lock()
	defer k.mutex.Unlock()
	var status unix.WaitStatus
	pid, err := unix.Wait4(-1, &status, unix.WNOHANG, nil)
	if pid <= 0 {
		return errors.Is(err, unix.EINTR)
	}
	if id, ours := k.running[pid]; ours {
		delete(k.running, pid)
		exit := Exit{Code: status.ExitStatus()}
		if status.Signaled() {
			exit = Exit{Code: -1, Signal: status.Signal()}
		}
		k.say(reply{ID: id, Exit: &exit})
	}
	return true
}

func failureOf(err error) *failure {
	if err == nil {
		return nil
	}
	told := &failure{Op: "do", Path: err.Error(), Errno: errnoOf(err)}
	var known *fs.PathError
	if errors.As(err, &known) {
		told.Op, told.Path = known.Op, known.Path
	}
	return told
}

func errnoOf(err error) syscall.Errno {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return errno
	}
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, exec.ErrNotFound) {
		return unix.ENOENT
	}
	return unix.EIO
}

// setUp makes the disk the root directory of this process, with the machine's directories in it, and sets up the
// network.
func setUp(encoded string) error {
	var box settings
	if err := json.Unmarshal([]byte(encoded), &box); err != nil {
		return err
	}
	// This comes first: no mount of the box may be visible outside.
	if err := mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE); err != nil {
		return err
	}
	entries, err := os.ReadDir("/")
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if err := adopt(entry, box.Dir); err != nil {
			return err
		}
	}
	for i, dir := range box.PathDirs {
		if err := bind(dir, filepath.Join(box.Dir, pathDir(i))); err != nil {
			return err
		}
	}
	for _, own := range []string{"tmp", "home", "root", "proc"} {
		if err := os.MkdirAll(filepath.Join(box.Dir, own), 0o755); err != nil {
			return err
		}
	}
	if err := os.Chmod(filepath.Join(box.Dir, "tmp"), 0o777|os.ModeSticky); err != nil {
		return err
	}
	if err := mount("proc", filepath.Join(box.Dir, "proc"), "proc", 0); err != nil {
		return err
	}
	if err := unix.Chroot(box.Dir); err != nil {
		return &fs.PathError{Op: "chroot", Path: box.Dir, Err: err}
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	return network()
}

// adopt mounts an entry of the machine's root directory in the box, unless the box has its own.
func adopt(entry fs.DirEntry, dir string) error {
	source, target := filepath.Join("/", entry.Name()), filepath.Join(dir, entry.Name())
	switch {
	case slices.Contains([]string{"tmp", "home", "root", "proc"}, entry.Name()):
		return nil
	case entry.Type()&fs.ModeSymlink != 0:
		link, err := os.Readlink(source)
		if err != nil {
			return err
		}
		if err := os.Symlink(link, target); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		return nil
	case entry.IsDir():
		return bind(source, target)
	}
	return nil
}

// bind mounts a directory in a second place. Except for devices it is read-only.
func bind(source, target string) error {
	if err := os.MkdirAll(target, 0o755); err != nil {
		return err
	}
	if err := mount(source, target, "", unix.MS_BIND|unix.MS_REC); err != nil {
		return err
	}
	if source == "/dev" {
		return nil
	}
	readOnly := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
	if err := unix.MountSetattr(-1, target, unix.AT_RECURSIVE, readOnly); err != nil {
		return &fs.PathError{Op: "mount read-only", Path: target, Err: err}
	}
	return nil
}

func mount(source, target, kind string, flags uintptr) error {
	if err := unix.Mount(source, target, kind, flags, ""); err != nil {
		return &fs.PathError{Op: "mount", Path: strings.TrimSpace(source + " on " + target), Err: err}
	}
	return nil
}

// network brings up the box's only interface and adds an address to 127.0.0.1.
func network() error {
	socket, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer unix.Close(socket)
	up, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	up.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(socket, unix.SIOCSIFFLAGS, up); err != nil {
		return os.NewSyscallError("bring lo up", err)
	}
	second, err := unix.NewIfreq("lo:1")
	if err != nil {
		return err
	}
	if err := second.SetInet4Addr(net.ParseIP(outside).To4()); err != nil {
		return err
	}
	return os.NewSyscallError("add an address", unix.IoctlIfreq(socket, unix.SIOCSIFADDR, second))
}

// searchPath returns the PATH of a box's processes.
func searchPath(options BoxOptions) string {
	var dirs []string
	for i := range options.PathDirs {
		dirs = append(dirs, pathDir(i))
	}
	return strings.Join(append(dirs, os.Getenv("PATH")), ":")
}

// pathDir returns the path in the box of one of BoxOptions.PathDirs.
func pathDir(i int) string { return "/.path/" + strconv.Itoa(i) }
