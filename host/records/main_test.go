package records

import (
	"os"
	"testing"

	"go.uber.org/goleak"
)

// roles are what the test binary does instead of testing when one of these environment variables is set.
var roles = map[string]func(argument string){hostVariable: beHost, turnVariable: beInTurn}

func TestMain(m *testing.M) {
	for variable, be := range roles {
		if argument := os.Getenv(variable); argument != "" {
			be(argument)
			return
		}
	}
	goleak.VerifyTestMain(m)
}
