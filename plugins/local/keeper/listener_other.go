//go:build !linux

package keeper

import "errors"

// listening fails: this system does not tell a user who listens where.
func listening(int) (four, six []socket, err error) { return nil, nil, errors.ErrUnsupported }

func stranger(int, []socket) *socket { return nil }
