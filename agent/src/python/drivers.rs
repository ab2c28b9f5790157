//! Which frames hold a statement as the application has written it, before a
//! driver puts the parameters into it: the table.
//!
//! psycopg2 is not written in Python. The statement is what the innermost
//! frame, the application's, passes to a cursor: first, or in a tuple of all
//! arguments, or by its name, and as a text, as `bytes`, or as an `SQL`. An
//! ORM's frame has it in a variable.
//!
//! The facts were read off the releases named at each library.

use super::frameworks::Start::{Argument, Local};
use super::frameworks::{Arguments, Framework, Role, Row, Want, innermost, row, stating};

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
    // psycopg2 2.8 to 2.9.
    Framework {
        names: &["psycopg2.sql", "psycopg2.extras", "psycopg2"],
        ..driver("psycopg2", "psycopg2.extensions", PSYCOPG2)
    },
    // SQLAlchemy 1.4 to 2.1.
    driver(
        "sqlalchemy",
        "sqlalchemy.engine.default",
        &[row(
            "sqlalchemy.engine.default",
            "DefaultDialect.do_execute",
            &[stating(Role::Statement, Local("statement"), &[])],
        )],
    ),
    // Django 3.2 to 6.1.
    driver(
        "django",
        "django.db.backends.utils",
        &[row(
            "django.db.backends.utils",
            "CursorWrapper._execute",
            &[stating(Role::Statement, Local("sql"), &[])],
        )],
    ),
];

const PSYCOPG2: &[Row] = &[
    row("psycopg2.extras", "DictCursor.execute", QUERY),
    row("psycopg2.extras", "RealDictCursor.execute", QUERY),
    row("psycopg2.extras", "NamedTupleCursor.execute", QUERY),
    row("psycopg2.extras", "LoggingCursor.execute", QUERY),
    innermost(&[stating(
        Role::Statement,
        Argument(Arguments {
            class: ("psycopg2.extensions", "cursor"),
            name: "query",
            // An `SQL` has one; others stand for more than a text.
            composed: ("psycopg2.sql", "Composable", "_wrapped"),
        }),
        &[],
    )]),
];

const QUERY: &[Want] = &[stating(Role::Statement, Local("query"), &[])];

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
