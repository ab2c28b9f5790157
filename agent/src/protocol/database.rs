//! What the spans of all databases have in common (semantic conventions for
//! database client spans, version 1.44).
//!
//! A parser says what was done and how it ended; here it becomes name,
//! attributes and status. It knows no database by name.

use std::borrow::Cow;

use super::{Connection, Endpoint, Exchange, Status};
use crate::attribute::{Attributes, Value};

/// `error.type` of an operation whose connection closed before its result was
/// complete.
pub(super) const CONNECTION_CLOSED: &str = "connection_closed";
/// `error.type` of an operation that failed in a way that was not seen.
pub(super) const OTHER: &str = "_OTHER";

/// The server's end of a connection.
#[derive(Clone, Debug)]
pub(super) struct Server {
    address: Option<String>,
    port: Option<u16>,
}

impl Server {
    /// There is none: the database is a part of the process.
    pub(super) const NONE: Self = Self {
        address: None,
        port: None,
    };

    pub(super) fn new(connection: &Connection) -> Self {
        let (address, port) = match &connection.peer {
            Some(Endpoint::Ip(address)) => {
                let ip = address.ip().to_canonical();
                (Some(ip.to_string()), Some(address.port()))
            }
            Some(Endpoint::Unix(path)) => (clean(path), None),
            None => (None, None),
        };
        Self { address, port }
    }

    /// Where it is, as a span's name may say.
    fn target(&self) -> Option<String> {
        let address = self.address.as_deref()?;
        Some(match self.port {
            Some(port) if address.contains(':') => format!("[{address}]:{port}"),
            Some(port) => format!("{address}:{port}"),
            None => address.to_owned(),
        })
    }
}

/// An operation that is over.
#[derive(Clone, Debug, Default)]
pub(super) struct Operation {
    /// `db.namespace`.
    pub(super) namespace: Option<String>,
    /// Whether the namespace may stand in a span's name.
    pub(super) namespace_in_name: bool,
    /// `db.operation.name`.
    pub(super) name: Option<Cow<'static, str>>,
    /// `db.query.summary`.
    pub(super) summary: Option<String>,
    /// `db.query.text`.
    pub(super) text: Option<String>,
    /// `db.stored_procedure.name`.
    pub(super) procedure: Option<String>,
    /// `db.operation.batch.size`, for a batch.
    pub(super) batch: Option<u64>,
    /// `db.response.status_code`.
    pub(super) status_code: Option<String>,
    /// `error.type`, if it failed.
    pub(super) error: Option<Cow<'static, str>>,
    /// `db.response.returned_rows`.
    pub(super) rows: Option<u64>,
}

impl Operation {
    /// The exchange that it was.
    pub(super) fn exchange(
        self,
        scope: &'static str,
        system: &'static str,
        server: &Server,
    ) -> Box<Exchange> {
        let Self {
            namespace,
            namespace_in_name,
            name,
            summary,
            text,
            procedure,
            batch,
            status_code,
            error,
            rows,
        } = self;
        let span_name = summary
            .clone()
            .map(Cow::Owned)
            .or_else(|| match (&name, &procedure) {
                (Some(name), Some(procedure)) => Some(format!("{name} {procedure}").into()),
                (name, _) => name.clone(),
            })
            .or_else(|| {
                namespace
                    .clone()
                    .filter(|_| namespace_in_name)
                    .map(Cow::Owned)
            })
            .or_else(|| server.target().map(Cow::Owned))
            .unwrap_or(Cow::Borrowed(system));
        let mut attributes = Attributes::with_capacity(12);
        let mut put = |key: &'static str, value: Option<Value>| {
            if let Some(value) = value {
                attributes.push((key.into(), value));
            }
        };
        put("db.system.name", Some(system.into()));
        put("db.namespace", namespace.map(Value::from));
        put("db.operation.name", name.map(Value::Str));
        put("db.stored_procedure.name", procedure.map(Value::from));
        put("db.query.summary", summary.map(Value::from));
        put("db.query.text", text.map(Value::from));
        put("db.operation.batch.size", batch.map(count));
        put("server.address", server.address.clone().map(Value::from));
        put(
            "server.port",
            server.port.map(|port| i64::from(port).into()),
        );
        put(
            "network.peer.address",
            server.address.clone().map(Value::from),
        );
        put(
            "network.peer.port",
            server.port.map(|port| i64::from(port).into()),
        );
        put("db.response.status_code", status_code.map(Value::from));
        let status = match error {
            Some(_) => Status::Error(String::new()),
            None => Status::Unset,
        };
        put("error.type", error.map(Value::Str));
        put("db.response.returned_rows", rows.map(count));
        Box::new(Exchange {
            scope: scope.into(),
            name: span_name,
            attributes,
            route_key: None,
            status,
        })
    }
}

fn count(number: u64) -> Value {
    i64::try_from(number).unwrap_or(i64::MAX).into()
}

/// A name from the wire without control characters; none if it is empty.
pub(super) fn clean(text: &str) -> Option<String> {
    let text = text
        .get(..text.floor_char_boundary(MAX_NAME))
        .unwrap_or_default();
    let text = text.replace(char::is_control, "\u{fffd}");
    Some(text).filter(|text| !text.is_empty())
}

/// Longest name that is told, bytes.
const MAX_NAME: usize = 255;
