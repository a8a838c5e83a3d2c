// Package fence refuses calls at the last moment. Between the decision to make a call and the call itself there may be a
// wait, for a plugin to start or for a stopped process to go on, and meanwhile the caller may have lost the right to it.
package fence

import "context"

type key struct{}

// With returns a context whose calls are made only while check returns nil. check is called before each and must be quick.
func With(ctx context.Context, check func() error) context.Context {
	return context.WithValue(ctx, key{}, check)
}

// Check returns the error with which a call must be refused, and nil for a context without a fence. Call it immediately
// before the call is made.
func Check(ctx context.Context) error {
	if check, fenced := ctx.Value(key{}).(func() error); fenced {
		return check()
	}
	return nil
}
