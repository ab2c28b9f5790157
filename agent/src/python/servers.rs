//! Where servers keep the connection that they serve: the table.
//!
//! For servers that read a request in one task or thread and serve it in
//! another, so that neither context nor thread tells whose a call is. Each row
//! names a function whose frame holds exactly one connection while a request
//! of it is served, conditions without which the last bytes that the
//! connection received may be those of a later request, and the ways to the
//! connection's descriptor. ARCHITECTURE.md says why each is certain.
//!
//! The facts were read off the releases named at each server.

use abi::record::moment;

use super::frameworks::Go::{Attribute, MethodSelf, Slot};
use super::frameworks::Start::Local;
use super::frameworks::{Condition, Framework, Go, Role, Row, Start, Via, Want, row};

/// Servers that hand a request over where contexts tell of it, so that they
/// need no rows but beside another one.
pub(super) const PASSIVE: &[&str] = &["uvicorn"];

/// Every server that is known.
pub(super) const SERVERS: &[Framework] = &[
    // aiohttp 3.8 to 3.14. The task of the connection takes a message out of
    // the queue and makes a task for it (up to 3.8 it serves it itself).
    server(
        "aiohttp",
        "aiohttp.web_protocol",
        &[bound(
            "aiohttp.web_protocol",
            "RequestHandler.start",
            &[
                condition(
                    Condition::Size(0),
                    Local("self"),
                    &[Slot("aiohttp.web_protocol", "RequestHandler", "_messages")],
                ),
                connection(
                    Via::Socket,
                    1,
                    Local("self"),
                    &[AIOHTTP, Attribute("_sock")],
                ),
                connection(
                    Via::Socket,
                    1,
                    Local("self"),
                    &[AIOHTTP, SESSION, CARRIER, Attribute("_sock")],
                ),
                connection(Via::Uvloop, 1, Local("self"), &[AIOHTTP]),
            ],
        )],
    ),
    // Hypercorn 0.14 to 0.18: its parser has a request's head, and what it
    // calls makes the task for it.
    server(
        "hypercorn",
        "hypercorn.asyncio.task_group",
        &[row(
            "hypercorn.protocol.h11",
            "H11Protocol._create_stream",
            &[
                connection(
                    Via::Socket,
                    0,
                    Local("self"),
                    &[
                        Attribute("send"),
                        MethodSelf,
                        Attribute("writer"),
                        Attribute("_transport"),
                        Attribute("_sock"),
                    ],
                ),
                connection(
                    Via::Socket,
                    0,
                    Local("self"),
                    &[
                        Attribute("send"),
                        MethodSelf,
                        Attribute("writer"),
                        Attribute("_transport"),
                        SESSION,
                        CARRIER,
                        Attribute("_sock"),
                    ],
                ),
                connection(
                    Via::Uvloop,
                    0,
                    Local("self"),
                    &[
                        Attribute("send"),
                        MethodSelf,
                        Attribute("writer"),
                        Attribute("_transport"),
                    ],
                ),
            ],
        )],
    ),
    // Tornado 5 to 6.6: starts the handler's coroutine from the loop that
    // reads the connection's requests.
    server(
        "tornado",
        "tornado.http1connection",
        &[row(
            "tornado.http1connection",
            "HTTP1ServerConnection._server_request_loop",
            &[connection(
                Via::Socket,
                0,
                Local("conn"),
                &[Attribute("stream"), Attribute("socket")],
            )],
        )],
    ),
    // Sanic 22 to 25: the connection's task serves its requests itself.
    server(
        "sanic",
        "sanic.http.http1",
        &[bound(
            "sanic.http.http1",
            "Http.http1",
            &[
                condition(
                    Condition::Size(0),
                    Local("self"),
                    &[Slot("sanic.http.http1", "Http", "recv_buffer")],
                ),
                connection(
                    Via::Socket,
                    1,
                    Local("self"),
                    &[SANIC_PROTOCOL, SANIC_TRANSPORT, Attribute("_sock")],
                ),
                connection(
                    Via::Socket,
                    1,
                    Local("self"),
                    &[
                        SANIC_PROTOCOL,
                        SANIC_TRANSPORT,
                        SESSION,
                        CARRIER,
                        Attribute("_sock"),
                    ],
                ),
                connection(
                    Via::Uvloop,
                    1,
                    Local("self"),
                    &[SANIC_PROTOCOL, SANIC_TRANSPORT],
                ),
            ],
        )],
    ),
    // Waitress 1.4 to 3.0: a thread serves what another one has read.
    server(
        "waitress",
        "waitress.channel",
        &[row(
            "waitress.channel",
            "HTTPChannel.service",
            &[
                condition(Condition::Nothing, Local("self"), &[Attribute("request")]),
                condition(Condition::Size(1), Local("self"), &[Attribute("requests")]),
                connection(Via::Socket, 2, Local("self"), &[Attribute("socket")]),
            ],
        )],
    ),
    // Tornado's own client: when a call has ended, the next one begins that
    // waits for its turn, whoever's it is.
    server(
        "tornado",
        "tornado.simple_httpclient",
        &[foreign(
            "tornado.simple_httpclient",
            "SimpleAsyncHTTPClient._release_fetch",
        )],
    ),
    // uvicorn 0.15 to 0.54: makes the request's task in the callback that
    // parses its head.
    server(
        "uvicorn",
        "uvicorn.protocols.http.h11_impl",
        &[row(
            "uvicorn.protocols.http.h11_impl",
            "H11Protocol.handle_events",
            UVICORN,
        )],
    ),
    server(
        "uvicorn",
        "uvicorn.protocols.http.httptools_impl",
        &[row(
            "uvicorn.protocols.http.httptools_impl",
            "HttpToolsProtocol.on_headers_complete",
            UVICORN,
        )],
    ),
];

/// From asyncio's transport of a TLS session to the one that carries it.
const SESSION: Go = Attribute("_ssl_protocol");
const CARRIER: Go = Attribute("_transport");
const AIOHTTP: Go = Slot("aiohttp.base_protocol", "BaseProtocol", "transport");
const SANIC_PROTOCOL: Go = Slot("sanic.http.http1", "Http", "protocol");
const SANIC_TRANSPORT: Go = Slot(
    "sanic.server.protocols.base_protocol",
    "SanicProtocol",
    "transport",
);
const UVICORN: &[Want] = &[
    connection(
        Via::Socket,
        0,
        Local("self"),
        &[Attribute("transport"), Attribute("_sock")],
    ),
    connection(Via::Uvloop, 0, Local("self"), &[Attribute("transport")]),
];

/// When the rows are asked: whose a copy of a context is, on whose behalf a
/// request is sent, and of which request a framework lets go.
const MOMENTS: u32 = 1 << moment::COPY | 1 << moment::SERVING;

const fn server(name: &'static str, module: &'static str, rows: &'static [Row]) -> Framework {
    Framework {
        name,
        module,
        routes: false,
        names: &[
            "asyncio.selector_events",
            "asyncio.sslproto",
            "hypercorn.asyncio.tcp_server",
            "hypercorn.protocol.h11",
            "asyncio.streams",
            "tornado.iostream",
            "waitress.wasyncore",
        ],
        context_variable: None,
        handled: &[],
        unless: &[],
        rows,
    }
}

/// A function that goes on with what others than its caller have queued.
const fn foreign(module: &'static str, function: &'static str) -> Row {
    Row {
        foreign: true,
        ..row(module, function, &[])
    }
}

/// A function that runs in a task of its own for each connection.
const fn bound(module: &'static str, function: &'static str, values: &'static [Want]) -> Row {
    Row {
        bound: true,
        ..row(module, function, values)
    }
}

const fn condition(condition: Condition, start: Start, path: &'static [Go]) -> Want {
    Want {
        role: Role::Condition(condition),
        moments: MOMENTS,
        start,
        path,
    }
}

const fn connection(via: Via, conditions: usize, start: Start, path: &'static [Go]) -> Want {
    Want {
        role: Role::Connection { via, conditions },
        moments: MOMENTS,
        start,
        path,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_come_first_and_every_way_knows_their_number() {
        let rows = SERVERS.iter().flat_map(|server| server.rows);
        for row in rows.filter(|row| !row.foreign) {
            let first = row.values.iter().position(|want| !is_condition(want));
            let first = first.expect("a way to the connection");
            for want in &row.values[first..] {
                let Role::Connection { conditions, .. } = want.role else {
                    panic!("{want:?} after a connection");
                };
                assert_eq!(conditions, first, "{row:?}");
            }
        }
    }

    fn is_condition(want: &Want) -> bool {
        matches!(want.role, Role::Condition(_))
    }
}
