// Package fence refuses calls at the last moment. Between the decision to make a call and the call there may be a wait,
// for a plugin to start or for a process that was stopped, and whoever made the decision may have lost the right to it.
package fence

import "context"

type key struct{}

// With gives a context whose calls are made only while holds answers nil. It is asked before each and must be quick.
func With(ctx context.Context, holds func() error) context.Context {
	return context.WithValue(ctx, key{}, holds)
}

// Check is asked immediately before a call is made: its error is the caller's. Without a fence it is nil.
func Check(ctx context.Context) error {
	if holds, fenced := ctx.Value(key{}).(func() error); fenced {
		return holds()
	}
	return nil
}
