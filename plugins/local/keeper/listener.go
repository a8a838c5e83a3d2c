package keeper

import (
	"errors"
	"io/fs"
	"os/user"
	"slices"
	"strconv"

	"github.com/berth-dev/berth/plugins/local/store"
)

// Listener is who accepts connections to a port of 127.0.0.1, as far as the kernel tells. The zero value is nobody.
type Listener struct {
	// Unknown reports that this system does not tell.
	Unknown bool
	// Sockets are the kernel's numbers of the listening sockets, in order.
	Sockets []uint64
	// Server reports that all of them are the server's: held by processes that descend from the sandbox's keeper.
	Server bool
	// User is whose socket it is that is not the server's.
	User string
	// IPv6 reports that the server listens on ::1, and nobody where it would be reached.
	IPv6 bool
}

// FindListener returns who listens on a port that the server of a sandbox was given. With a keeper dies its server.
func FindListener(s store.Store, id string, port int) (Listener, error) {
	client, err := Dial(s, id)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return Listener{}, err
	}
	keeper := client.PID()
	if !hasArgument(keeper, s.Dir(id)) { // it is dead, and the number may be another process's
		keeper = 0
	}
	four, six, told := listening(port)
	switch {
	case !told:
		return Listener{Unknown: true}, nil
	case len(four) == 0:
		return Listener{IPv6: len(six) > 0 && stranger(keeper, six) == nil}, nil
	}
	found := Listener{Server: true}
	for _, socket := range four {
		found.Sockets = append(found.Sockets, socket.inode)
	}
	slices.Sort(found.Sockets)
	if other := stranger(keeper, four); other != nil {
		found.Server, found.User = false, userName(other.user)
	}
	return found, nil
}

// socket is a listening socket.
type socket struct {
	inode uint64
	user  int
}

func userName(number int) string {
	if u, err := user.LookupId(strconv.Itoa(number)); err == nil {
		return u.Username
	}
	return "number " + strconv.Itoa(number)
}
