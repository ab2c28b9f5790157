//! Which frames hold a statement as the application has written it, before a
//! driver puts the parameters into it: the table.
//!
//! psycopg2 is not here: it is not written in Python. What calls it is the
//! application's, and tells nothing certain, unless it is an ORM.
//!
//! The facts were read off the releases named at each library.

use super::frameworks::Start::Local;
use super::frameworks::{Framework, Role, Row, Want, row, sending};

/// Every library whose frames have statements. What lies within another comes
/// first.
pub(super) const DRIVERS: &[Framework] = &[
    // psycopg 3.1 to 3.3.
    driver(
        "psycopg",
        "psycopg.cursor",
        &[
            row("psycopg.cursor", "Cursor.execute", QUERY),
            row("psycopg.cursor_async", "AsyncCursor.execute", QUERY),
            // Up to 3.1.
            row("psycopg.cursor", "AsyncCursor.execute", QUERY),
        ],
    ),
    // SQLAlchemy 1.4 to 2.1.
    driver(
        "sqlalchemy",
        "sqlalchemy.engine.default",
        &[row(
            "sqlalchemy.engine.default",
            "DefaultDialect.do_execute",
            &[sending(Role::Statement, Local("statement"), &[])],
        )],
    ),
    // Django 3.2 to 6.1.
    driver(
        "django",
        "django.db.backends.utils",
        &[row(
            "django.db.backends.utils",
            "CursorWrapper._execute",
            &[sending(Role::Statement, Local("sql"), &[])],
        )],
    ),
];

const QUERY: &[Want] = &[sending(Role::Statement, Local("query"), &[])];

const fn driver(name: &'static str, module: &'static str, rows: &'static [Row]) -> Framework {
    Framework {
        name,
        module,
        routes: false,
        names: &[],
        context_variable: None,
        handled: &[],
        unless: &[],
        rows,
    }
}
