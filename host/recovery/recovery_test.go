package recovery

import (
	"testing"
	"time"

	"github.com/berth-dev/berth/host/records"
)

func TestARecordFromTheFutureIsNotFresh(t *testing.T) {
	t.Parallel()
	for age, want := range map[time.Duration]bool{0: true, 30 * time.Second: true, -30 * time.Second: true, 2 * time.Minute: false, -3 * time.Hour: false} {
		if got := Fresh(records.Record{UpdatedAt: time.Now().Add(-age)}, time.Minute); got != want {
			t.Errorf("%s ago: got %t, want %t", age, got, want)
		}
	}
}
