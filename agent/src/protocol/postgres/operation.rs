//! An exchange from its first message to its result, and what is told of it.

use std::borrow::Cow;
use std::sync::Arc;

use super::ending::Columns;
use super::message::string;
use crate::protocol::Exchange;
use crate::protocol::database::{CONNECTION_CLOSED, OTHER, Operation, Server};
use crate::protocol::reader::Reader;
use crate::protocol::sql::Statement;

/// Instrumentation scope of every PostgreSQL exchange.
const SCOPE: &str = "otel-ebpf.postgresql";
/// `db.system.name`.
const SYSTEM: &str = "postgresql";
/// `error.type` of an operation that the server skipped since one before it
/// in the same series had failed; libpq's name for it.
const ABORTED: &str = "pipeline_aborted";

/// An exchange that is not over.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) number: u64,
    pub(super) statement: Option<Arc<Statement>>,
    /// The name that it prepares its statement under.
    pub(super) parsed: Option<Vec<u8>>,
    /// The server has prepared its statement.
    pub(super) prepared: bool,
    /// Its last `Bind` was executed.
    pub(super) bound_executed: bool,
    /// Executions sent, and those answered.
    pub(super) executions: u64,
    pub(super) completed: u64,
    /// It asks what columns its statement has, in whatever form.
    pub(super) described: bool,
    /// What its rows look like.
    pub(super) columns: Columns,
    /// Rows that came, where they can come at all.
    pub(super) rows: Option<u64>,
    /// Rows that came, some of them unseen.
    pub(super) counted: Option<u64>,
    /// The command, as the server tells it.
    command: Option<String>,
    pub(super) failure: Option<Failure>,
    /// Some of its messages were not seen.
    pub(super) uncertain: bool,
    /// It yields no span: it is only there to be answered.
    pub(super) abandoned: bool,
}

/// How an operation failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// The server says so; with its SQLSTATE if that was seen.
    State(Option<String>),
    /// One before it had failed.
    Skipped,
    /// The connection was closed.
    Closed,
}

/// What the server answers to an execution.
#[derive(Debug)]
pub(super) enum Reply {
    /// It is prepared, or described.
    Prepared,
    /// Its rows follow, if there are any.
    Rows,
    Row,
    /// It is over: a command's tag, and the number in it.
    Complete(String, Option<u64>),
    /// It is over, or suspended, without a tag.
    Over,
}

impl Reply {
    pub(super) fn of(kind: u8, body: &[u8]) -> Option<Self> {
        Some(match kind {
            b'1' | b't' | b'n' => Self::Prepared,
            b'T' | b'H' => Self::Rows,
            b'D' => Self::Row,
            b'C' => {
                let tag = string(&mut Reader::new(body)).unwrap_or_default();
                let tag = String::from_utf8_lossy(tag);
                let words = tag.split(' ').filter(|word| {
                    !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_uppercase())
                });
                let command = words.collect::<Vec<_>>().join(" ");
                let count = tag.rsplit(' ').next().and_then(|word| word.parse().ok());
                Self::Complete(command, count)
            }
            b's' | b'I' | b'V' => Self::Over,
            _ => return None,
        })
    }
}

impl Pending {
    pub(super) fn new(number: u64) -> Self {
        Self {
            number,
            statement: None,
            parsed: None,
            prepared: false,
            bound_executed: false,
            executions: 0,
            completed: 0,
            described: false,
            columns: Columns::Unknown,
            rows: None,
            counted: None,
            command: None,
            failure: None,
            uncertain: false,
            abandoned: false,
        }
    }

    pub(super) fn is_executed(&self) -> bool {
        self.executions > 0
    }

    /// Whether every execution is answered.
    pub(super) fn is_answered(&self) -> bool {
        self.is_executed() && self.completed >= self.executions
    }

    pub(super) fn take(&mut self, reply: Reply) {
        match reply {
            Reply::Prepared => self.prepared = true,
            Reply::Rows => self.rows = self.rows.or(Some(0)),
            Reply::Row => self.rows = Some(self.rows.unwrap_or(0).saturating_add(1)),
            Reply::Complete(command, count) => {
                self.completed += 1;
                let returns = matches!(&*command, "SELECT" | "FETCH" | "SHOW");
                if returns && self.rows.is_none() {
                    // It has rows, but none came.
                    self.rows = Some(0);
                }
                if let (true, Some(_)) = (command == "COPY", self.rows) {
                    // What is copied out comes as lines of text.
                    self.rows = count;
                }
                if !command.is_empty() {
                    self.command = Some(command);
                }
            }
            Reply::Over => self.completed += 1,
        }
    }

    /// What it was.
    pub(super) fn exchange(self, database: Option<&String>, server: &Server) -> Box<Exchange> {
        let statement = self.statement.as_deref();
        let batch = (self.executions > 1 && !self.uncertain).then_some(self.executions);
        let summary = statement.and_then(|statement| statement.summary.clone());
        let summary = match batch {
            Some(_) => summary.map(|summary| format!("BATCH {summary}")),
            None => summary,
        };
        let text = statement.map(|statement| statement.text.clone());
        // Without its text the command's own word has to do.
        let name: Option<Cow<'static, str>> = match &summary {
            Some(_) => None,
            None => self.command.map(Cow::Owned),
        };
        let (status_code, error): (_, Option<Cow<'static, str>>) = match self.failure {
            None => (None, None),
            Some(Failure::State(Some(state))) => (Some(state.clone()), Some(state.into())),
            Some(Failure::State(None)) => (None, Some(OTHER.into())),
            Some(Failure::Skipped) => (None, Some(ABORTED.into())),
            Some(Failure::Closed) => (None, Some(CONNECTION_CLOSED.into())),
        };
        let rows = self.rows.filter(|_| !self.uncertain).or(self.counted);
        let rows = rows.filter(|_| error.is_none());
        Operation {
            namespace: database.cloned(),
            namespace_in_name: true,
            name,
            summary,
            text: text.filter(|text| !text.is_empty()),
            procedure: None,
            batch,
            status_code,
            error,
            rows,
        }
        .exchange(SCOPE, SYSTEM, server)
    }
}

/// The SQLSTATE among an error's fields.
pub(super) fn state(body: &[u8]) -> Option<String> {
    let mut body = Reader::new(body);
    loop {
        let field = body.byte().filter(|field| *field != 0)?;
        let value = string(&mut body)?;
        if field == b'C' {
            let valid = value.len() == 5 && value.iter().all(u8::is_ascii_alphanumeric);
            return valid.then(|| String::from_utf8_lossy(value).into_owned());
        }
    }
}
