//go:build !race

package testbin

// Race reports whether the tests run with the race detector. What they build should use it too, because that is already
// in the build cache.
const Race = false
