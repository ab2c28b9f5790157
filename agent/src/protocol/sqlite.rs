//! Statements of SQLite, which no wire carries: the library runs them in the
//! process, and the kernel side tells of each when it has ended.

use super::Exchange;
use super::database::{Operation, Server, clean};
use super::sql::{self, Dialect};

/// Instrumentation scope of every statement.
const SCOPE: &str = "otel-ebpf.sqlite";
/// `db.system.name`.
const SYSTEM: &str = "sqlite";
/// `db.namespace` of a database without a file.
const IN_MEMORY: &str = ":memory:";

/// A statement that has ended.
#[derive(Clone, Copy, Debug, Default)]
pub struct Outcome<'a> {
    /// Its text.
    pub text: &'a [u8],
    /// The name of the main database's file; empty where there is none, or it
    /// is not known.
    pub file: &'a [u8],
    /// Whether the database is in memory.
    pub in_memory: bool,
    /// Rows that it gave; none where it cannot give any.
    pub rows: Option<u64>,
    /// Its extended result code; 0 if nothing went wrong.
    pub code: i32,
    /// How many statements it stands for, if it is more than one.
    pub batch: Option<u64>,
    /// Whether the text has several of them.
    pub script: bool,
}

/// Whether the library runs a statement for itself, to read a database's
/// schema: `SELECT*FROM"main".sqlite_master ORDER BY rowid`.
pub fn is_internal(text: &[u8]) -> bool {
    const BEGIN: &[u8] = b"SELECT*FROM\"";
    const END: &[u8] = b" ORDER BY rowid";
    let Some(table) = text
        .strip_prefix(BEGIN)
        .and_then(|text| text.strip_suffix(END))
    else {
        return false;
    };
    let tables: [&[u8]; 4] = [
        b"\".sqlite_master",
        b"\".sqlite_temp_master",
        b"\".sqlite_schema",
        b"\".sqlite_temp_schema",
    ];
    tables.iter().any(|known| table.ends_with(known))
}

/// The statement as an exchange.
pub fn exchange(outcome: &Outcome<'_>) -> Box<Exchange> {
    let statement = match outcome.script {
        // What is a parameter in one of them says nothing of the others.
        true => sql::describe(outcome.text, Dialect::default()),
        false => sql::describe_parameterized(outcome.text, Dialect::default()),
    };
    let summary = match outcome.batch {
        Some(_) => statement.summary.map(|summary| format!("BATCH {summary}")),
        None => statement.summary,
    };
    let file = String::from_utf8_lossy(outcome.file);
    let namespace = match outcome.in_memory {
        true => Some(IN_MEMORY.to_owned()),
        false => clean(&file),
    };
    let code = (outcome.code != 0).then(|| outcome.code.to_string());
    let operation = Operation {
        namespace,
        summary,
        text: Some(statement.text).filter(|text| !text.is_empty()),
        error: code.clone().map(Into::into),
        status_code: code,
        rows: outcome.rows,
        batch: outcome.batch,
        ..Operation::default()
    };
    operation.exchange(SCOPE, SYSTEM, &Server::NONE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attribute::Value;
    use crate::protocol::Status;

    fn text<'a>(exchange: &'a Exchange, key: &str) -> Option<&'a str> {
        let mut found = exchange.attributes.iter().filter(|(known, _)| known == key);
        match found.next() {
            Some((_, Value::Str(text))) => Some(text),
            _ => None,
        }
    }

    #[test]
    fn tells_what_was_asked_and_what_came_of_it() {
        let found = exchange(&Outcome {
            text: b"select * from items where id = ?",
            file: b"/var/lib/shop.db",
            rows: Some(2),
            ..Outcome::default()
        });
        assert_eq!(found.name, "select items");
        assert_eq!(found.status, Status::Unset);
        assert_eq!(text(&found, "db.namespace"), Some("/var/lib/shop.db"));
        assert_eq!(text(&found, "db.system.name"), Some("sqlite"));
        assert_eq!(
            text(&found, "db.query.text"),
            Some("select * from items where id = ?")
        );
        assert_eq!(text(&found, "server.address"), None);
    }

    #[test]
    fn an_error_has_the_extended_code_and_no_literal_shows() {
        let found = exchange(&Outcome {
            text: b"insert into items values (1, 'secret')",
            in_memory: true,
            code: 2067,
            ..Outcome::default()
        });
        assert_eq!(found.status, Status::Error(String::new()));
        assert_eq!(text(&found, "error.type"), Some("2067"));
        assert_eq!(text(&found, "db.response.status_code"), Some("2067"));
        assert_eq!(text(&found, "db.namespace"), Some(":memory:"));
        assert_eq!(
            text(&found, "db.query.text"),
            Some("insert into items values (?, ?)")
        );
    }

    #[test]
    fn knows_what_the_library_runs_for_itself() {
        for own in [
            &b"SELECT*FROM\"main\".sqlite_master ORDER BY rowid"[..],
            b"SELECT*FROM\"temp\".sqlite_temp_master ORDER BY rowid",
        ] {
            assert!(is_internal(own));
        }
        for other in [
            &b"SELECT * FROM sqlite_master ORDER BY rowid"[..],
            b"SELECT*FROM\"items\" ORDER BY rowid",
            b"",
        ] {
            assert!(!is_internal(other));
        }
    }
}
