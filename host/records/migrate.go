package records

import (
	"context"
	"database/sql"
	"embed"
	"fmt"
	"io/fs"

	"github.com/pressly/goose/v3"
)

//go:embed migrations/*.sql
var migrations embed.FS

const (
	// schema is the newest version of the tables. Each version has a file in migrations, which never changes again.
	schema = 2
	// versionTable is the table in which goose stores the version.
	versionTable = "berth_schema"
	// selectVersion returns 0 while the version table is empty, that is, while the database is being created.
	selectVersion = `SELECT COALESCE(MAX(version_id), 0) FROM ` + versionTable + ` WHERE is_applied`
)

// migrate upgrades the tables to a version. The caller must exclude concurrent migrations.
func migrate(ctx context.Context, db *sql.DB, dialect goose.Dialect, version int64) error {
	files, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return err
	}
	provider, err := goose.NewProvider(dialect, db, files, goose.WithTableName(versionTable), goose.WithDisableGlobalRegistry(true))
	if err != nil {
		return err
	}
	_, err = provider.UpTo(ctx, version)
	return err
}

// tooNew returns the error for a database that a newer berth has migrated.
func tooNew(where string, version int64) error {
	return &UnusableError{
		Where:   where,
		Problem: fmt.Sprintf("they have schema version %d, and this berth knows versions up to %d", version, schema),
		Hint:    "use a newer berth, the one that wrote them or a later one",
	}
}
