// Package simcloud is what the simulated clouds share: sandboxes as real local processes (Box), a proxy into them,
// fault injection with a log of every call (Traffic), servers that end cleanly (Serve) and a control surface for
// scripts (Control).
//
// A Box is a small machine made of Linux namespaces: its own network, so that every box may listen on the same port,
// its own process numbers, so that nothing outlives it, and its own root directory, so that boxes do not meet in /tmp.
// It needs no external tool, and no root where the kernel lets users make namespaces.
//
// The process that keeps a box is the running executable started once more. So main and TestMain begin with Main.
package simcloud

import (
	"errors"
	"os"
	"sync"
	"sync/atomic"
)

// keeperVariable tells an executable that it is to keep a box; its value says which.
const keeperVariable = "BERTH_SIMCLOUD_BOX"

var mainCalled atomic.Bool

// ErrNoIsolation says that this machine cannot run boxes: it is not Linux, or its kernel refuses namespaces to this
// user. The error that wraps it names the reason; tests skip with it.
var ErrNoIsolation = errors.New("this machine cannot run simulated sandboxes")

// Main comes first in main and in TestMain. In a process that was started to keep a box it does so and never returns.
func Main() {
	if settings, isKeeper := os.LookupEnv(keeperVariable); isKeeper {
		os.Exit(keepBox(settings))
	}
	mainCalled.Store(true)
}

// Isolation says whether boxes work here: nil, or an error that wraps ErrNoIsolation. It tries once per process.
func Isolation() error {
	_, err := isolation()
	return err
}

var isolation = sync.OnceValues(findIsolation)

// mode is how a box's namespaces are made.
type mode int

const (
	asRoot mode = iota
	asUser      // with a user namespace besides, in which the user is root
)
