//! Parses the values of settings, one function per kind of value.
//!
//! A [`Reason`] completes the sentence that begins with the setting's name
//! and value; which setting it is, is `config`'s to say.

use std::collections::HashSet;
use std::time::Duration;

use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::uri::Uri;
use percent_encoding::percent_decode_str;

use super::{ExporterKind, Origin, Protocol, Reason};

/// Spans that a queue may be told to hold. A span takes a few KiB at most in
/// practice, so this is a bound on a typing mistake, not on a need.
const MAX_COUNT: u64 = 1 << 24;

/// Longest time that can be set, in milliseconds: a year, which is far from
/// every overflow of a point in time.
const MAX_MILLIS: u64 = 365 * 24 * 3_600 * 1_000;

pub(super) fn parse_number(value: &str) -> Result<u64, Reason> {
    value
        .parse()
        .map_err(|_| "it is not a whole number from 0 upwards".to_owned())
}

pub(super) fn parse_positive(value: &str) -> Result<u64, Reason> {
    match parse_number(value)? {
        0 => Err("it must be greater than 0".to_owned()),
        number => Ok(number.min(MAX_MILLIS)),
    }
}

/// A time in milliseconds; 0 means that there is no limit.
pub(super) fn parse_timeout(value: &str) -> Result<Duration, Reason> {
    Ok(Duration::from_millis(match parse_number(value)? {
        0 => MAX_MILLIS,
        millis => millis.min(MAX_MILLIS),
    }))
}

pub(super) fn parse_count(value: &str) -> Result<usize, Reason> {
    let number = parse_positive(value)?;
    if number > MAX_COUNT {
        return Err(format!("it must be at most {MAX_COUNT}"));
    }
    usize::try_from(number).map_err(|error| error.to_string())
}

pub(super) fn parse_limit(value: &str) -> Result<usize, Reason> {
    Ok(usize::try_from(parse_number(value)?).unwrap_or(usize::MAX))
}

/// Everything but "true" is false; what is neither is worth a note.
pub(super) fn parse_bool(value: &str) -> (bool, Vec<Reason>) {
    let is_true = value.eq_ignore_ascii_case("true");
    let mut notes = Vec::new();
    if !is_true && !value.eq_ignore_ascii_case("false") {
        notes.push("it is neither true nor false; taken as false".to_owned());
    }
    (is_true, notes)
}

pub(super) fn parse_choice<T: Copy>(value: &str, choices: &[(&str, T)]) -> Result<T, Reason> {
    choices
        .iter()
        .find(|(name, _)| name.eq_ignore_ascii_case(value))
        .map(|&(_, choice)| choice)
        .ok_or_else(|| {
            let names: Vec<_> = choices.iter().map(|&(name, _)| name).collect();
            format!("it must be one of {}", names.join(", "))
        })
}

/// The choices of the exporter list.
const EXPORTERS: &[(&str, Option<ExporterKind>)] = &[
    ("otlp", Some(ExporterKind::Otlp)),
    ("console", Some(ExporterKind::Console)),
    ("otlp/stdout", Some(ExporterKind::Stdout)),
    ("none", None),
];

pub(super) fn parse_exporters(value: &str) -> Result<(Vec<ExporterKind>, Vec<Reason>), Reason> {
    let mut exporters = Vec::new();
    let mut notes = Vec::new();
    let mut none = false;
    for name in value
        .split(',')
        .map(str::trim)
        .filter(|name| !name.is_empty())
    {
        match EXPORTERS
            .iter()
            .find(|(known, _)| known.eq_ignore_ascii_case(name))
        {
            Some((_, Some(kind))) if exporters.contains(kind) => {}
            Some((_, Some(kind))) => exporters.push(kind.clone()),
            Some((_, None)) => none = true,
            None => notes.push(format!("there is no exporter {name:?}; ignored")),
        }
    }
    if none && !exporters.is_empty() {
        notes.push("none beside others has no effect".to_owned());
    }
    if exporters.is_empty() && !none {
        let names: Vec<_> = EXPORTERS.iter().map(|&(name, _)| name).collect();
        return Err(format!("it must be a list of {}", names.join(", ")));
    }
    Ok((exporters, notes))
}

/// Parses a list of headers as in W3C Baggage, without properties. Messages
/// never quote a value.
pub(super) fn parse_headers(value: &str) -> Result<HeaderMap, Reason> {
    let mut headers = HeaderMap::new();
    let mut seen = HashSet::new();
    for (idx, member) in value.split(',').enumerate() {
        if member.trim().is_empty() {
            continue;
        }
        let wrong = |what: &str| format!("header {} {what}", idx + 1);
        let (name, value) = member
            .split_once('=')
            .ok_or_else(|| wrong("has no \"=\""))?;
        let decode = |text| {
            percent_decode_str(text)
                .decode_utf8()
                .map_err(|_| wrong("is not UTF-8"))
        };
        let name = HeaderName::from_bytes(decode(name.trim())?.as_bytes())
            .map_err(|_| wrong("has an invalid name"))?;
        let mut value = HeaderValue::from_bytes(decode(value.trim())?.as_bytes())
            .map_err(|_| wrong("has an invalid value"))?;
        value.set_sensitive(true);
        if seen.insert(name.clone()) {
            headers.insert(name, value);
        } else {
            headers.append(name, value);
        }
    }
    Ok(headers)
}

/// Makes the URL that a request is sent to.
///
/// The endpoint of traces alone is used as it is; to any other, HTTP appends
/// `v1/traces` (specification, OTLP Exporter: Endpoint URLs for OTLP/HTTP).
pub(super) fn resolve_endpoint(
    text: &str,
    protocol: Protocol,
    origin: Origin,
    insecure: bool,
) -> Result<Uri, Reason> {
    let full = match (text.contains("://"), protocol) {
        (true, _) => text.to_owned(),
        (false, Protocol::Grpc) if insecure => format!("http://{text}"),
        (false, Protocol::Grpc) => format!("https://{text}"),
        (false, Protocol::HttpProtobuf) => {
            return Err("it must begin with http:// or https://".to_owned());
        }
    };
    let uri: Uri = full
        .parse()
        .map_err(|error| format!("it is not a URL ({error})"))?;
    if !matches!(uri.scheme_str(), Some("http" | "https")) {
        return Err("its scheme must be http or https".to_owned());
    }
    if uri.host().is_none_or(str::is_empty) {
        return Err("it has no host".to_owned());
    }
    if uri
        .authority()
        .is_some_and(|authority| authority.as_str().contains('@'))
    {
        return Err("it has a user name; send credentials as a header".to_owned());
    }
    let path = match (protocol, origin) {
        (Protocol::Grpc, _) => "/".to_owned(),
        (Protocol::HttpProtobuf, Origin::Traces(_)) => match uri.path_and_query() {
            Some(path) => path.as_str().to_owned(),
            None => "/".to_owned(),
        },
        (Protocol::HttpProtobuf, _) => {
            let query = uri
                .query()
                .map(|query| format!("?{query}"))
                .unwrap_or_default();
            format!("{}/v1/traces{query}", uri.path().trim_end_matches('/'))
        }
    };
    let mut parts = uri.into_parts();
    parts.path_and_query = Some(
        path.parse()
            .map_err(|error| format!("it is not a URL ({error})"))?,
    );
    Uri::from_parts(parts).map_err(|error| format!("it is not a URL ({error})"))
}

/// The text without the user information of a URL.
pub(super) fn without_credentials(text: &str) -> String {
    let Some((scheme, rest)) = text.split_once("://") else {
        return text.to_owned();
    };
    let authority_len = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, tail) = rest.split_at(authority_len);
    match authority.rsplit_once('@') {
        Some((_, host)) => format!("{scheme}://[redacted]@{host}{tail}"),
        None => text.to_owned(),
    }
}
