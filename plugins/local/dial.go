package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"slices"
	"strconv"

	"github.com/berth-dev/berth/plugins/local/keeper"
	"github.com/berth-dev/berth/plugins/local/store"
	"github.com/berth-dev/berth/shared/provider"
)

// All users of this machine share its ports. One of them may see in the list of processes which port a server will have,
// and listen there first. So the session key is sent on a connection only after the kernel has told that the server's own
// processes listen there.

type serverOf struct{}

// toServerOf returns a context in which connections are made to the server of a sandbox.
func toServerOf(ctx context.Context, record store.Record) context.Context {
	return context.WithValue(ctx, serverOf{}, record)
}

// newProbeClient returns the client for all probes. It keeps connections: each was proved when it was made.
func (l *Local) newProbeClient() *http.Client {
	client := provider.NewProbeClient()
	client.Transport.(*http.Transport).DialContext = l.dial
	return client
}

// dial connects to a sandbox's server. It looks who listens before that and after it: in between nobody else can have.
func (l *Local) dial(ctx context.Context, network, address string) (net.Conn, error) {
	_, word, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	port, err := strconv.Atoi(word)
	if err != nil {
		return nil, err
	}
	before, err := l.listener(ctx, port)
	if err != nil {
		return nil, err
	}
	conn, err := new(net.Dialer).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	after, err := l.listener(ctx, port)
	if err == nil && !slices.Equal(before.Sockets, after.Sockets) {
		err = fmt.Errorf("who listens on port %d has just changed", port)
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

// listener returns who listens on a port, and an error if that is not the sandbox's server.
func (l *Local) listener(ctx context.Context, port int) (keeper.Listener, error) {
	record, _ := ctx.Value(serverOf{}).(store.Record)
	reserved := slices.Contains(append(slices.Collect(maps.Values(record.ExtraPorts)), record.Port), port)
	if l.anyListener || !reserved { // an endpoint that is not the sandbox's is whoever's who asks
		return keeper.Listener{}, nil
	}
	found, err := keeper.FindListener(l.store, record.ID, port)
	switch {
	case err != nil || found.Unknown:
		return found, err
	case found.IPv6:
		return found, fmt.Errorf("the server listens on ::1 only, and is asked at 127.0.0.1: let it listen on $HOST, port %d", port)
	case len(found.Sockets) == 0:
		return found, fmt.Errorf("nothing listens on port %d yet", port)
	case !found.Server:
		return found, errors.New(strangers(port, found.User))
	}
	return found, nil
}

func strangers(port int, user string) string {
	return fmt.Sprintf("what listens on port %d is not the session's server but another process, of user %s: it is not sent the session "+
		`key (listener = "any" would)`, port, user)
}
