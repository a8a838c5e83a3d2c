package simcloud

import (
	"context"
	"errors"
	"fmt"
	"os"
)

func findIsolation() (mode, error) {
	if !mainCalled.Load() {
		return 0, errors.New("simcloud.Main was not called at the start of main or TestMain")
	}
	modes := []mode{asUser}
	if os.Geteuid() == 0 {
		modes = []mode{asRoot, asUser}
	}
	var reasons []error
	for _, how := range modes {
		err := try(how)
		if err == nil {
			return how, nil
		}
		reasons = append(reasons, err)
	}
	return 0, fmt.Errorf("%w: the kernel refused namespaces: %w", ErrNoIsolation, errors.Join(reasons...))
}

func try(how mode) error {
	dir, err := os.MkdirTemp("", "simcloud-try-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	machine, err := startMachine(context.Background(), how, BoxOptions{Dir: dir})
	if err != nil {
		return err
	}
	machine.close()
	return nil
}
