package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/berth-dev/berth/host/records"
)

// auditTime is how long a cloud may take to finish what it has begun.
const auditTime = 5 * time.Second

// audit holds the cloud's own truth against the records. live are the sandboxes that must be there.
func (n *world) audit(ctx context.Context, r *result, live []box) error {
	var found counts
	var notes []string
	for deadline := time.Now().Add(auditTime); ; time.Sleep(100 * time.Millisecond) {
		var err error
		if found, notes, err = n.compare(ctx, live); err != nil {
			return err
		}
		if found.total() == 0 || time.Now().After(deadline) {
			break
		}
	}
	if err := healthy(ctx, n.bystander.Endpoint.URL, n.bystander.Endpoint.Headers); err != nil {
		found.swept++
		notes = append(notes, "the bystander: "+err.Error())
	}
	r.add(found)
	n.notes = append(n.notes, notes...)
	return nil
}

func (n *world) compare(ctx context.Context, live []box) (found counts, notes []string, err error) {
	there, err := n.boxes(ctx, "")
	if err != nil {
		return found, nil, err
	}
	store, err := n.records(ctx)
	if err != nil {
		return found, nil, err
	}
	list, err := store.List(ctx)
	owed, owedErr := store.Owed(ctx, "")
	if err = errors.Join(err, owedErr, store.Close()); err != nil { //nolint:contextcheck // it ends whatever it began
		return found, nil, err
	}
	note := func(format string, args ...any) { notes = append(notes, fmt.Sprintf(format, args...)) }
	bySession := map[string]records.Record{}
	for _, record := range list {
		bySession[record.Session] = record
	}

	sandboxes := map[string]int{} // by session
	byID := map[string]box{}
	for _, b := range there {
		if b.state == vanishing {
			continue
		}
		byID[b.id] = b
		if b.owner != n.owner {
			continue
		}
		sandboxes[b.session]++
		if sandboxes[b.session] > 1 {
			found.duplicated++
			note("duplicated: session %s also has %s", b.session, b.id)
		}
		if record := bySession[b.session]; !record.HasSandbox() || record.SandboxID != b.id {
			found.leaked++
			note("leaked: %+v is %s; the record is %+v", b.id, b.state, record)
		}
	}
	for _, record := range list {
		if problem := disagreement(record, byID); problem != "" {
			found.disagreeing++
			note("disagreeing: %s: %+v", problem, record)
		}
	}
	for _, attempt := range owed {
		found.disagreeing++
		note("disagreeing: an earlier attempt still owes an undo: %+v", attempt)
	}
	ids := map[string]bool{}
	for _, b := range live {
		if _, isThere := byID[b.id]; !isThere && !ids[b.id] {
			found.swept++
			note("swept: %+v", b)
		}
		ids[b.id] = true
	}
	return found, notes, nil
}

// disagreement says in what a record differs from the cloud.
func disagreement(record records.Record, there map[string]box) string {
	if record.Holder != "" {
		return "somebody still holds it"
	}
	if !record.HasSandbox() {
		return ""
	}
	if record.Interrupted() {
		return "it is still interrupted"
	}
	b, isThere := there[record.SandboxID]
	states := map[records.State]boxState{records.StateRunning: running, records.StateSuspended: asleep}
	switch {
	case !isThere:
		return "there is no such sandbox"
	case states[record.State] != b.state:
		return "the sandbox is " + string(b.state)
	}
	return ""
}
