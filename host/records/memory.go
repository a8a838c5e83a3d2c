package records

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"
)

// Memory is records that end with the process: for a host that keeps none, and for tests. Several stores of one Memory
// are several hosts.
type Memory struct {
	mutex   sync.Mutex
	began   time.Time
	records map[string]*memoryRecord
}

type memoryRecord struct {
	Record
	token int64
	host  *memoryHolder // nil when nobody holds it
}

// memoryHolder lives until it is ended: a process cannot outlive itself, so it needs no renewal.
type memoryHolder struct {
	name  string
	ended bool // guarded by memory.mutex
}

// NewMemory begins records.
func NewMemory() *Memory {
	return &Memory{began: time.Now(), records: map[string]*memoryRecord{}}
}

// Store gives a host of that name its way to the records.
func (m *Memory) Store(name string) *MemoryStore {
	return &MemoryStore{memory: m, holder: &memoryHolder{name: name}}
}

// MemoryStore is one host's way to a Memory.
type MemoryStore struct {
	memory *Memory
	holder *memoryHolder // guarded by memory.mutex
}

// End does what the end of a lease's time does: all leases of this host are lost. The next Claim begins anew.
func (s *MemoryStore) End() {
	s.memory.mutex.Lock()
	defer s.memory.mutex.Unlock()
	s.holder.ended = true
}

// Claim is Store.Claim.
func (s *MemoryStore) Claim(_ context.Context, session string) (Lease, Record, error) {
	m := s.memory
	m.mutex.Lock()
	defer m.mutex.Unlock()
	if s.holder.ended {
		s.holder = &memoryHolder{name: s.holder.name}
	}
	r := m.records[session]
	if r == nil {
		r = &memoryRecord{Record: Record{Session: session, State: StateGone, UpdatedAt: time.Now()}}
		m.records[session] = r
	}
	if r.host != nil && !r.host.ended {
		return Lease{}, Record{}, &HeldError{Session: session, Holder: r.host.name}
	}
	r.host = s.holder
	r.token++
	return Lease{Session: session, Holder: s.holder.name, Token: r.token}, r.Record, nil
}

// holds gives the record of a lease that holds.
func (s *MemoryStore) holds(lease Lease) (*memoryRecord, error) {
	r := s.memory.records[lease.Session]
	if r == nil || r.token != lease.Token || r.host != s.holder || s.holder.ended {
		return nil, ErrLost
	}
	return r, nil
}

// Check is Store.Check.
func (s *MemoryStore) Check(_ context.Context, lease Lease) error {
	s.memory.mutex.Lock()
	defer s.memory.mutex.Unlock()
	_, err := s.holds(lease)
	return err
}

// Save is Store.Save.
func (s *MemoryStore) Save(_ context.Context, lease Lease, record Record) error {
	s.memory.mutex.Lock()
	defer s.memory.mutex.Unlock()
	_, err := s.save(lease, record)
	return err
}

func (s *MemoryStore) save(lease Lease, record Record) (*memoryRecord, error) {
	r, err := s.holds(lease)
	if err != nil {
		return nil, err
	}
	record.Session, record.Holder, record.UpdatedAt = lease.Session, "", r.UpdatedAt
	if record != r.Record {
		record.UpdatedAt = time.Now()
	}
	r.Record = record
	return r, nil
}

// Release is Store.Release.
func (s *MemoryStore) Release(_ context.Context, lease Lease, record Record) error {
	s.memory.mutex.Lock()
	defer s.memory.mutex.Unlock()
	r, err := s.save(lease, record)
	if err == nil {
		r.host = nil
	}
	return err
}

func (r *memoryRecord) seen() Record {
	seen := r.Record
	if r.host != nil && !r.host.ended {
		seen.Holder = r.host.name
	}
	return seen
}

// Get is Store.Get.
func (s *MemoryStore) Get(_ context.Context, session string) (Record, error) {
	s.memory.mutex.Lock()
	defer s.memory.mutex.Unlock()
	r := s.memory.records[session]
	if r == nil {
		return Record{}, ErrNotFound
	}
	return r.seen(), nil
}

// List is Store.List.
func (s *MemoryStore) List(context.Context) ([]Record, error) {
	s.memory.mutex.Lock()
	defer s.memory.mutex.Unlock()
	var all []Record
	for _, r := range s.memory.records {
		all = append(all, r.seen())
	}
	slices.SortFunc(all, func(x, y Record) int { return cmp.Compare(x.Session, y.Session) })
	return all, nil
}

// Forget is Store.Forget.
func (s *MemoryStore) Forget(_ context.Context, before time.Time) (int, error) {
	s.memory.mutex.Lock()
	defer s.memory.mutex.Unlock()
	n := 0
	for session, r := range s.memory.records {
		if r.State == StateGone && r.seen().Holder == "" && r.UpdatedAt.Before(before) {
			delete(s.memory.records, session)
			n++
		}
	}
	return n, nil
}

// Began is Store.Began.
func (s *MemoryStore) Began(context.Context) (time.Time, error) { return s.memory.began, nil }

// Valid is Store.Valid.
func (s *MemoryStore) Valid() bool {
	s.memory.mutex.Lock()
	defer s.memory.mutex.Unlock()
	return !s.holder.ended
}

// Close is Store.Close.
func (s *MemoryStore) Close() error {
	s.End()
	return nil
}
