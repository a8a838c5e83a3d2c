package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
)

// Ports are picked from this range, except those that the kernel uses for outgoing connections: such a connection could
// take a port before the server starts.
const (
	firstPort = 20000
	lastPort  = 31999
)

// LockPorts takes the lock that is needed to reserve ports.
func (s Store) LockPorts(ctx context.Context) (unlock func(), err error) { return s.Lock(ctx, "ports") }

// PickPort reserves an unused port for a sandbox, until the sandbox is erased.
func (s Store) PickPort(ctx context.Context, id string) (int, error) {
	ephemeralFirst, ephemeralLast := ephemeralPorts()
	const count = lastPort - firstPort + 1
	start := rand.IntN(count)
	for i := range count {
		port := firstPort + (start+i)%count
		if port >= ephemeralFirst && port <= ephemeralLast {
			continue
		}
		if reservedFor, err := s.ReservePort(ctx, id, port); err != nil || reservedFor == id {
			return port, err
		}
	}
	return 0, fmt.Errorf("all ports from %d to %d are taken or ephemeral", firstPort, lastPort)
}

// ReservePort reserves a port for a sandbox, until the sandbox is erased. It returns who has the port now: the sandbox
// itself, another sandbox's ID, or "" if something else on this machine listens there. It may be called again for the
// same port.
func (s Store) ReservePort(ctx context.Context, id string, port int) (reservedFor string, err error) {
	link := filepath.Join(s.Root, "ports", strconv.Itoa(port))
	if err := os.MkdirAll(filepath.Dir(link), 0o700); err != nil {
		return "", err
	}
	switch target, err := os.Readlink(link); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return "", err
	default:
		reservedFor = filepath.Base(target)
		if _, err := os.Stat(s.Dir(reservedFor)); err == nil && reservedFor != id {
			return reservedFor, nil
		}
		os.Remove(link) // its sandbox is gone, or it is ours
	}
	if !listenable(ctx, port) {
		return "", nil
	}
	return id, os.Symlink(filepath.Join("..", "sandboxes", id), link)
}

func listenable(ctx context.Context, port int) bool {
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	if err != nil {
		return false
	}
	listener.Close()
	return true
}

func (s Store) releasePorts(ctx context.Context, id string) error {
	unlock, err := s.LockPorts(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	links, err := os.ReadDir(filepath.Join(s.Root, "ports"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, entry := range links {
		link := filepath.Join(s.Root, "ports", entry.Name())
		if target, err := os.Readlink(link); err == nil && filepath.Base(target) == id {
			os.Remove(link)
		}
	}
	return nil
}
