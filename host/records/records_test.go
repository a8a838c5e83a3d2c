package records

import "testing"

func TestARecordIsInterruptedWhenNobodyWorksOnWhatIsHalfDone(t *testing.T) {
	t.Parallel()
	for state, want := range map[State]bool{
		StateCreating: true, StateDestroying: true, StateRunning: false, StateSuspended: false, StateGone: false, "": false,
	} {
		for holder, free := range map[string]bool{"": true, "host-1": false} {
			if got := (Record{State: state, Holder: holder}).Interrupted(); got != (want && free) {
				t.Errorf("%q, held by %q: interrupted is %t", state, holder, got)
			}
		}
	}
}
