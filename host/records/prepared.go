package records

import (
	"context"
	"database/sql"
	"sync"
)

// prepared runs queries as prepared statements, which it keeps. For SQLite, reading a query costs more than running it.
type prepared struct {
	on         preparer
	mutex      sync.Mutex
	statements map[string]*sql.Stmt
}

// preparer is a *sql.DB or a *sql.Conn.
type preparer interface {
	PrepareContext(ctx context.Context, query string) (*sql.Stmt, error)
	QueryRowContext(ctx context.Context, query string, arguments ...any) *sql.Row
}

func newPrepared(on preparer) *prepared {
	return &prepared{on: on, statements: map[string]*sql.Stmt{}}
}

func (p *prepared) statement(ctx context.Context, query string) (*sql.Stmt, error) {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	if statement := p.statements[query]; statement != nil {
		return statement, nil
	}
	statement, err := p.on.PrepareContext(ctx, query)
	if err == nil {
		p.statements[query] = statement
	}
	return statement, err
}

func (p *prepared) close() {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	for _, statement := range p.statements {
		statement.Close()
	}
	clear(p.statements)
}

func (p *prepared) ExecContext(ctx context.Context, query string, arguments ...any) (sql.Result, error) {
	statement, err := p.statement(ctx, query)
	if err != nil {
		return nil, err
	}
	return statement.ExecContext(ctx, arguments...)
}

func (p *prepared) QueryContext(ctx context.Context, query string, arguments ...any) (*sql.Rows, error) {
	statement, err := p.statement(ctx, query)
	if err != nil {
		return nil, err
	}
	return statement.QueryContext(ctx, arguments...)
}

func (p *prepared) QueryRowContext(ctx context.Context, query string, arguments ...any) *sql.Row {
	statement, err := p.statement(ctx, query)
	if err != nil {
		return p.on.QueryRowContext(ctx, query, arguments...) // which fails likewise, in the only way to say so
	}
	return statement.QueryRowContext(ctx, arguments...)
}
