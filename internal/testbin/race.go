//go:build race

package testbin

// Race reports whether the tests run with the race detector. What they build should be built with it too, so that it is
// found compiled.
const Race = true
