// Package bench measures berth: what the host adds to the work of a provider, and what many sessions at once cost.
// It holds nothing but benchmarks:
//
//	go test -run '^$' -bench . -benchtime 1x ./internal/bench
//
// Each benchmark is one experiment of a fixed size that ignores b.N, reports figures of its own, and logs what they
// should be. Where speed is claimed, the figure is a ratio to something measured in the same run, turn by turn, so that
// a slow or busy machine slows down both. Slowness never fails a benchmark; a wrong result does, and so does anything
// that is left behind. Memory is measured on Linux only. All of it takes about three minutes; with -short, which has
// fewer rounds and smaller crowds and so only shows that everything works, less than one.
package bench
