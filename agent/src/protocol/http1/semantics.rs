//! From heads to the attributes of the semantic conventions (HTTP spans,
//! version 1.44).
//!
//! The request's attributes are made when its head is complete, so that no
//! header has to be kept; the response adds its own at the end.

use std::borrow::Cow;

use super::Settings;
use super::message::{Framing, FramingHeaders, Headers, MAX_HEADERS};
use super::url::{self, Target};
use crate::attribute::{Attributes, Value};
use crate::propagation::TraceContext;
use crate::protocol::{Connection, Defect, Endpoint, Exchange, Role, Status};

/// Instrumentation scope of every HTTP exchange.
const SCOPE: &str = "otel-ebpf.http";

/// `error.type` of an exchange whose connection closed before its response
/// was complete. Who closed it, and why, is not on the wire.
pub(super) const CONNECTION_CLOSED: &str = "connection_closed";

/// What of a connection every exchange says.
#[derive(Debug)]
pub(super) struct Ends {
    pub(super) role: Role,
    tls: bool,
    unix: bool,
    peer_address: Option<String>,
    peer_port: Option<u16>,
}

impl Ends {
    pub(super) fn new(connection: &Connection) -> Self {
        let (unix, peer_address, peer_port) = match &connection.peer {
            Some(Endpoint::Ip(address)) => {
                let ip = address.ip().to_canonical();
                (false, Some(ip.to_string()), Some(address.port()))
            }
            Some(Endpoint::Unix(path)) => {
                let path = url::clean(path).into_owned();
                (true, Some(path).filter(|path| !path.is_empty()), None)
            }
            None => (
                matches!(connection.local, Some(Endpoint::Unix(_))),
                None,
                None,
            ),
        };
        Self {
            role: connection.role,
            tls: connection.tls,
            unix,
            peer_address,
            peer_port,
        }
    }
}

/// What a request's head says.
#[derive(Debug)]
pub(super) struct RequestHead {
    /// Name and attributes so far.
    pub(super) exchange: Box<Exchange>,
    /// Its body.
    pub(super) framing: Framing,
    /// The caller's context.
    pub(super) context: Option<Box<TraceContext>>,
    /// `HEAD`, whose response has no body.
    pub(super) is_head: bool,
    /// `CONNECT`, after which a tunnel begins.
    pub(super) is_connect: bool,
    /// It waits for 100 (Continue) before it sends its body.
    pub(super) expects_continue: bool,
}

/// What a response's head says.
#[derive(Clone, Copy, Debug)]
pub(super) struct ResponseHead {
    pub(super) status: u16,
    pub(super) version: &'static str,
    /// Its body, where request and status allow for one.
    pub(super) framing: Framing,
}

/// How an exchange ended.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Outcome {
    /// The final response, if one came.
    pub(super) response: Option<ResponseHead>,
    /// Whether the connection closed before the response was complete.
    pub(super) closed: bool,
    /// Bytes of the request's body, where all were counted.
    pub(super) request_size: Option<u64>,
    /// Bytes of the response's body, where all were counted.
    pub(super) response_size: Option<u64>,
}

/// Parses a request's head; also gives its length in `bytes`.
pub(super) fn parse_request(
    bytes: &[u8],
    ends: &Ends,
    settings: &Settings,
) -> Result<Option<(RequestHead, usize)>, Defect> {
    match try_request(bytes, ends, settings) {
        // The target may hold bytes that are not UTF-8; servers accept them.
        Err(httparse::Error::Token) => match escape_target(bytes) {
            Some((escaped, added)) => try_request(&escaped, ends, settings)
                .map(|found| found.map(|(head, length)| (head, length.saturating_sub(added))))
                .map_err(defect),
            None => Err(Defect::Malformed),
        },
        found => found.map_err(defect),
    }
}

/// Parses a response's head; also gives its length in `bytes`.
pub(super) fn parse_response(bytes: &[u8]) -> Result<Option<(ResponseHead, usize)>, Defect> {
    let mut headers: Headers<'_> = [const { std::mem::MaybeUninit::uninit() }; MAX_HEADERS];
    let mut response = httparse::Response::new(&mut []);
    // Clients are lenient with servers, so a watcher has to be.
    let parsed = httparse::ParserConfig::default()
        .allow_spaces_after_header_name_in_responses(true)
        .allow_obsolete_multiline_headers_in_responses(true)
        .allow_multiple_spaces_in_response_status_delimiters(true)
        .ignore_invalid_headers_in_responses(true)
        .parse_response_with_uninit_headers(&mut response, bytes, &mut headers);
    let httparse::Status::Complete(length) = parsed.map_err(defect)? else {
        return Ok(None);
    };
    let mut framing = FramingHeaders::default();
    for header in response.headers.iter() {
        match Known::of(header.name) {
            Some(Known::ContentLength) => framing.content_length(header.value),
            Some(Known::TransferEncoding) => framing.transfer_encoding(header.value),
            _ => {}
        }
    }
    let status = response.code.ok_or(Defect::Malformed)?;
    let head = ResponseHead {
        status,
        version: version(response.version),
        framing: match status {
            100..=199 | 204 | 304 => Framing::Empty,
            _ => framing.of_response(),
        },
    };
    Ok(Some((head, length)))
}

/// Completes an exchange.
pub(super) fn finish(mut exchange: Box<Exchange>, role: Role, outcome: Outcome) -> Box<Exchange> {
    let Outcome {
        response,
        closed,
        request_size,
        response_size,
    } = outcome;
    let attributes = &mut exchange.attributes;
    if let Some(ResponseHead {
        status, version, ..
    }) = response
    {
        put(attributes, "http.response.status_code", i64::from(status));
        if role == Role::Client
            && let Some((_, value)) = attributes
                .iter_mut()
                .find(|(key, _)| key == "network.protocol.version")
        {
            // The version that both ends settled on.
            *value = version.into();
        }
    }
    let failed = response
        .map(|response| response.status)
        .filter(|status| is_error(*status, role));
    let error: Option<Cow<'static, str>> = match failed {
        Some(status) => Some(status.to_string().into()),
        None => closed.then_some(CONNECTION_CLOSED.into()),
    };
    if let Some(error) = error {
        attributes.push(("error.type".into(), Value::Str(error)));
        exchange.status = Status::Error(String::new());
    }
    let attributes = &mut exchange.attributes;
    for (key, size) in [
        ("http.request.body.size", request_size),
        ("http.response.body.size", response_size),
    ] {
        if let Some(size) = size {
            put(attributes, key, i64::try_from(size).unwrap_or(i64::MAX));
        }
    }
    exchange
}

/// Whether a status code is an error for that side; codes that are none of
/// HTTP's five classes are.
fn is_error(status: u16, role: Role) -> bool {
    match role {
        Role::Client => !(100..400).contains(&status),
        Role::Server => !(100..500).contains(&status),
    }
}

fn put(attributes: &mut Attributes, key: &'static str, value: impl Into<Value>) {
    attributes.push((Cow::Borrowed(key), value.into()));
}

fn defect(error: httparse::Error) -> Defect {
    match error {
        httparse::Error::TooManyHeaders => Defect::HeadTooLong,
        _ => Defect::Malformed,
    }
}

fn version(minor: Option<u8>) -> &'static str {
    match minor {
        Some(0) => "1.0",
        _ => "1.1",
    }
}

/// Writes the target's bytes above 127 in percent-encoding; also gives by how
/// much that is longer. None where it changes nothing.
fn escape_target(bytes: &[u8]) -> Option<(Vec<u8>, usize)> {
    let line_length = bytes.iter().position(|byte| *byte == b'\n')?;
    let (line, rest) = bytes.split_at_checked(line_length)?;
    let mut escaped = Vec::with_capacity(bytes.len() + 64);
    for byte in line {
        match byte {
            0x80.. => {
                escaped.extend_from_slice(percent_encoding::percent_encode_byte(*byte).as_bytes())
            }
            _ => escaped.push(*byte),
        }
    }
    escaped.extend_from_slice(rest);
    let added = escaped.len().checked_sub(bytes.len()).filter(|n| *n > 0)?;
    Some((escaped, added))
}

/// The headers that are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    ContentLength,
    Expect,
    Forwarded,
    Host,
    TraceParent,
    TraceState,
    TransferEncoding,
    UserAgent,
    XForwardedFor,
    XForwardedHost,
    XForwardedProto,
}

impl Known {
    fn of(name: &str) -> Option<Self> {
        // By length first: most headers are told apart without a comparison.
        let candidates: &[(&str, Self)] = match name.len() {
            4 => &[("host", Self::Host)],
            6 => &[("expect", Self::Expect)],
            9 => &[("forwarded", Self::Forwarded)],
            10 => &[
                ("user-agent", Self::UserAgent),
                ("tracestate", Self::TraceState),
            ],
            11 => &[("traceparent", Self::TraceParent)],
            14 => &[("content-length", Self::ContentLength)],
            15 => &[("x-forwarded-for", Self::XForwardedFor)],
            16 => &[("x-forwarded-host", Self::XForwardedHost)],
            17 => &[
                ("transfer-encoding", Self::TransferEncoding),
                ("x-forwarded-proto", Self::XForwardedProto),
            ],
            _ => &[],
        };
        candidates
            .iter()
            .find(|(known, _)| name.eq_ignore_ascii_case(known))
            .map(|(_, known)| *known)
    }
}

/// The first value of each header that is kept once.
#[derive(Debug, Default)]
struct Values<'a> {
    forwarded: Option<&'a [u8]>,
    host: Option<&'a [u8]>,
    user_agent: Option<&'a [u8]>,
    forwarded_for: Option<&'a [u8]>,
    forwarded_host: Option<&'a [u8]>,
    forwarded_proto: Option<&'a [u8]>,
    trace_parents: usize,
    trace_parent: Option<&'a [u8]>,
    expects_continue: bool,
}

fn try_request(
    bytes: &[u8],
    ends: &Ends,
    settings: &Settings,
) -> Result<Option<(RequestHead, usize)>, httparse::Error> {
    let mut headers: Headers<'_> = [const { std::mem::MaybeUninit::uninit() }; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut []);
    let parsed = httparse::ParserConfig::default()
        .ignore_invalid_headers_in_requests(true)
        .parse_request_with_uninit_headers(&mut request, bytes, &mut headers)?;
    let httparse::Status::Complete(length) = parsed else {
        return Ok(None);
    };
    let method = request.method.unwrap_or_default();
    let path = request.path.unwrap_or_default();
    let mut framing = FramingHeaders::default();
    let mut values = Values::default();
    for header in request.headers.iter() {
        let value = header.value;
        let Some(known) = Known::of(header.name) else {
            continue;
        };
        let first = match known {
            Known::ContentLength => {
                framing.content_length(value);
                continue;
            }
            Known::TransferEncoding => {
                framing.transfer_encoding(value);
                continue;
            }
            Known::Expect => {
                values.expects_continue = value.eq_ignore_ascii_case(b"100-continue");
                continue;
            }
            Known::TraceState => continue,
            Known::TraceParent => {
                values.trace_parents += 1;
                &mut values.trace_parent
            }
            Known::Forwarded => &mut values.forwarded,
            Known::Host => &mut values.host,
            Known::UserAgent => &mut values.user_agent,
            Known::XForwardedFor => &mut values.forwarded_for,
            Known::XForwardedHost => &mut values.forwarded_host,
            Known::XForwardedProto => &mut values.forwarded_proto,
        };
        first.get_or_insert(value);
    }
    let context = context(&values, request.headers);
    let is_connect = method == "CONNECT";
    let target = Target::new(path, is_connect);
    let known = settings.known_methods.iter().find(|known| *known == method);

    let mut attributes = Attributes::with_capacity(18);
    match known {
        Some(known) => put(
            &mut attributes,
            "http.request.method",
            Value::Str(known.clone()),
        ),
        None => {
            put(&mut attributes, "http.request.method", "_OTHER");
            let original = url::clean(method).into_owned();
            put(&mut attributes, "http.request.method_original", original);
        }
    }
    match ends.role {
        Role::Server => server(&mut attributes, &target, &values, ends, settings),
        Role::Client => client(&mut attributes, &target, &values, ends, settings),
    }
    if let Some(address) = &ends.peer_address {
        put(&mut attributes, "network.peer.address", address.clone());
    }
    if let Some(port) = ends.peer_port {
        put(&mut attributes, "network.peer.port", i64::from(port));
    }
    if ends.unix {
        put(&mut attributes, "network.transport", "unix");
    }
    put(
        &mut attributes,
        "network.protocol.version",
        version(request.version),
    );
    let head = RequestHead {
        exchange: Box::new(Exchange {
            scope: Cow::Borrowed(SCOPE),
            name: known.cloned().unwrap_or(Cow::Borrowed("HTTP")),
            attributes,
            route_key: (ends.role == Role::Server).then_some("http.route"),
            status: Status::Unset,
        }),
        framing: framing.of_request(),
        context,
        is_head: method == "HEAD",
        is_connect,
        expects_continue: values.expects_continue,
    };
    Ok(Some((head, length)))
}

/// The caller's context; several `traceparent` headers are none at all.
fn context(values: &Values<'_>, headers: &[httparse::Header<'_>]) -> Option<Box<TraceContext>> {
    let parent = values.trace_parent.filter(|_| values.trace_parents == 1)?;
    let parent = std::str::from_utf8(parent).ok()?;
    let states = headers
        .iter()
        .filter(|header| header.name.eq_ignore_ascii_case("tracestate"))
        // A list that is not text is invalid, which `\0` says here.
        .map(|header| std::str::from_utf8(header.value).unwrap_or("\0"));
    TraceContext::parse(parent, states).map(Box::new)
}

/// What only a server span says.
fn server(
    attributes: &mut Attributes,
    target: &Target<'_>,
    values: &Values<'_>,
    ends: &Ends,
    settings: &Settings,
) {
    let forwarded = values
        .forwarded
        .map(|value| Forwarded::parse(&url::text(value)));
    let forwarded = forwarded.unwrap_or_default();
    let listed = |value: Option<&[u8]>| value.and_then(first_of_list).map(Cow::into_owned);

    let scheme = forwarded
        .proto
        .or_else(|| listed(values.forwarded_proto))
        .or_else(|| target.scheme.map(str::to_owned))
        .filter(|scheme| url::is_scheme(scheme))
        .map(|scheme| match scheme.to_ascii_lowercase().as_str() {
            "http" => Cow::Borrowed("http"),
            "https" => Cow::Borrowed("https"),
            other => Cow::Owned(other.to_owned()),
        })
        .unwrap_or(Cow::Borrowed(immediate_scheme(ends)));
    put(attributes, "url.scheme", Value::Str(scheme));
    put(attributes, "url.path", url::clean(target.path).into_owned());
    if let Some(query) = target.query {
        let query = url::redact(query, &settings.sensitive_query_keys);
        put(attributes, "url.query", url::clean(&query).into_owned());
    }
    let original = forwarded.host.or_else(|| listed(values.forwarded_host));
    let authority = match (&original, target.authority, values.host) {
        (Some(host), ..) => Some(Cow::Borrowed(host.as_str())),
        (None, Some(authority), _) => Some(url::clean(authority)),
        (None, None, host) => host.map(url::text),
    };
    if let Some((host, port)) = authority.as_deref().and_then(url::split_authority) {
        put(attributes, "server.address", host.to_owned());
        if let Some(port) = port {
            put(attributes, "server.port", i64::from(port));
        }
    }
    let client = forwarded
        .address
        .or_else(|| url::forwarded_address(&first_of_list(values.forwarded_for?)?))
        .or_else(|| ends.peer_address.clone());
    if let Some(address) = client {
        put(attributes, "client.address", address);
    }
    if let Some(agent) = values.user_agent {
        put(
            attributes,
            "user_agent.original",
            url::text(agent).into_owned(),
        );
    }
}

/// What only a client span says.
fn client(
    attributes: &mut Attributes,
    target: &Target<'_>,
    values: &Values<'_>,
    ends: &Ends,
    settings: &Settings,
) {
    let scheme = match target.scheme {
        Some(scheme) => Cow::Owned(scheme.to_ascii_lowercase()),
        None => Cow::Borrowed(immediate_scheme(ends)),
    };
    let default_port = match &*scheme {
        "https" | "wss" => Some(443),
        "http" | "ws" => Some(80),
        _ => None,
    };
    let authority = match target.authority {
        Some(authority) => Some(url::clean(authority)),
        None => values.host.map(url::text),
    };
    let (host, port) = match authority.as_deref().and_then(url::split_authority) {
        Some((host, port)) => (host, port.or(default_port)),
        None => (
            ends.peer_address.as_deref().unwrap_or_default(),
            ends.peer_port.or(default_port),
        ),
    };
    // CONNECT has no scheme: what it names is host and port.
    let is_connect = target.scheme.is_none() && target.authority.is_some();
    let (shown_scheme, shown_port) = match is_connect {
        true => ("", port),
        false => (&*scheme, port.filter(|port| Some(*port) != default_port)),
    };
    let keys = &settings.sensitive_query_keys;
    let full = url::full(target, shown_scheme, host, shown_port, keys);
    put(attributes, "url.full", full);
    if !host.is_empty() {
        put(attributes, "server.address", host.to_owned());
    }
    if let Some(port) = port {
        put(attributes, "server.port", i64::from(port));
    }
}

fn immediate_scheme(ends: &Ends) -> &'static str {
    if ends.tls { "https" } else { "http" }
}

/// The first item of a comma-separated header, which names the original
/// client's side of a chain of proxies.
fn first_of_list(value: &[u8]) -> Option<Cow<'_, str>> {
    let first = value.split(|byte| *byte == b',').next()?.trim_ascii();
    (!first.is_empty()).then(|| url::text(first))
}

/// The first of each parameter of a `Forwarded` header (RFC 7239).
#[derive(Debug, Default)]
struct Forwarded {
    address: Option<String>,
    host: Option<String>,
    proto: Option<String>,
}

impl Forwarded {
    fn parse(text: &str) -> Self {
        let mut found = Self::default();
        let mut chars = text.chars().peekable();
        while chars.peek().is_some() {
            let mut name = String::new();
            let mut value = String::new();
            let (mut in_value, mut quoted) = (false, false);
            while let Some(c) = chars.next() {
                match c {
                    '\\' if quoted => value.extend(chars.next()),
                    '"' if in_value => quoted = !quoted,
                    ';' | ',' if !quoted => break,
                    '=' if !in_value => in_value = true,
                    _ if in_value => value.push(c),
                    _ => name.push(c),
                }
            }
            let value = value.trim();
            let kept = match name.trim().to_ascii_lowercase().as_str() {
                "for" => {
                    if found.address.is_none() {
                        found.address = url::forwarded_address(value);
                    }
                    continue;
                }
                "host" => &mut found.host,
                "proto" => &mut found.proto,
                _ => continue,
            };
            if kept.is_none() && !value.is_empty() {
                *kept = Some(value.to_owned());
            }
        }
        found
    }
}
