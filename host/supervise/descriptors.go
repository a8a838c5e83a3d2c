package supervise

import (
	"os"
	"strconv"
	"sync"
	"syscall"
)

// keepDescriptors keeps what this process has inherited, besides its standard streams, from the plugins that it starts: a
// socket, a lock or a secret of the program that runs berth. All that Go opens is closed in children anyway, so once is
// enough.
var keepDescriptors = sync.OnceFunc(func() {
	dir, err := os.Open("/dev/fd") // on Linux and macOS, the descriptors of this process
	if err != nil {                // in a container without /proc
		for descriptor := 3; descriptor < 4096; descriptor++ {
			syscall.CloseOnExec(descriptor)
		}
		return
	}
	defer dir.Close()
	names, _ := dir.Readdirnames(-1)
	for _, name := range names {
		if descriptor, err := strconv.Atoi(name); err == nil && descriptor > 2 {
			syscall.CloseOnExec(descriptor)
		}
	}
})
