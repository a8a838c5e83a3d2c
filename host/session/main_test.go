package session

import (
	"os"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if options := os.Getenv(hostVariable); options != "" {
		beHost(options)
		return
	}
	goleak.VerifyTestMain(m)
}
