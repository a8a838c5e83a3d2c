// Package simcloud is shared by the simulated clouds. It provides sandboxes made of real local processes (Box), a proxy
// to their ports (Proxy), fault injection and a log of every call (Traffic), servers that shut down completely (Serve)
// and an API for scripts (Control).
//
// A Box consists of Linux namespaces: its own network, so that every box can use the same ports, its own process
// numbers, so that no process outlives it, and its own root directory, so that boxes do not share /tmp. It needs no
// external tool, and no root if the kernel lets users create namespaces.
//
// The process that keeps a box is the running executable, started again. Therefore main and TestMain must begin with
// Main.
package simcloud

import (
	"errors"
	"os"
	"sync"
	"sync/atomic"
)

// keeperVariable makes an executable keep the box that its value describes.
const keeperVariable = "BERTH_SIMCLOUD_BOX"

var mainCalled atomic.Bool

// ErrNoIsolation is returned on machines that cannot run boxes: those other than Linux, or whose kernel does not allow
// this user namespaces. The wrapping error has the reason. Tests should be skipped.
var ErrNoIsolation = errors.New("this machine cannot run simulated sandboxes")

// Main must be called first in main and in TestMain. In a process that was started to keep a box it does so and never
// returns.
func Main() {
	if settings, isKeeper := os.LookupEnv(keeperVariable); isKeeper {
		os.Exit(keepBox(settings))
	}
	mainCalled.Store(true)
}

// Isolation returns nil if this machine can run boxes, or else an error that wraps ErrNoIsolation. It tries once per
// process.
func Isolation() error {
	_, err := isolation()
	return err
}

var isolation = sync.OnceValues(findIsolation)

// hasUsers reports whether processes in boxes can have users other than root.
func hasUsers() bool {
	how, err := isolation()
	return err == nil && how == asRoot
}

// mode is how the namespaces of a box are created.
type mode int

const (
	asRoot mode = iota
	asUser      // with an additional user namespace, in which the user is root
)
