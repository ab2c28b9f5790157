//! Request targets, authorities and redaction (RFC 3986, RFC 9112 section 3).
//!
//! What comes out is fit for an attribute: UTF-8, bounded, without control
//! characters, without credentials.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};

use percent_encoding::percent_decode_str;

/// Longest attribute value, bytes; as much as servers take in one line.
pub(super) const MAX_VALUE: usize = 8 * 1024;

/// What stands for a hidden part of a URL.
const REDACTED: &str = "REDACTED";

/// A request target, taken apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Target<'a> {
    /// Scheme of an absolute target.
    pub(super) scheme: Option<&'a str>,
    /// Authority, without user information, of an absolute target or of
    /// `CONNECT`.
    pub(super) authority: Option<&'a str>,
    /// Whether there was user information.
    pub(super) credentials: bool,
    /// Path; `*` as it is, empty for `CONNECT`.
    pub(super) path: &'a str,
    /// Query without the question mark.
    pub(super) query: Option<&'a str>,
}

impl<'a> Target<'a> {
    /// Takes a target apart; `connect` where the method is `CONNECT`.
    pub(super) fn new(text: &'a str, connect: bool) -> Self {
        if connect {
            return Self::default().with_authority(text);
        }
        // A fragment never belongs on the wire.
        let text = text.split_once('#').map_or(text, |(before, _)| before);
        let (before, query) = match text.split_once('?') {
            Some((before, query)) => (before, Some(query)),
            None => (text, None),
        };
        let target = Self {
            path: before,
            query,
            ..Self::default()
        };
        if before.starts_with('/') {
            return target;
        }
        match before.split_once("://") {
            Some((scheme, rest)) if is_scheme(scheme) => {
                let path_start = rest.find('/').unwrap_or(rest.len());
                let (authority, path) = rest.split_at(path_start);
                Self {
                    scheme: Some(scheme),
                    path: if path.is_empty() { "/" } else { path },
                    ..target
                }
                .with_authority(authority)
            }
            _ => target,
        }
    }

    fn with_authority(self, text: &'a str) -> Self {
        let (credentials, authority) = match text.rsplit_once('@') {
            Some((_, host)) => (true, host),
            None => (false, text),
        };
        Self {
            authority: Some(authority),
            credentials,
            ..self
        }
    }
}

/// Whether it is a URI scheme of a sane length.
pub(super) fn is_scheme(text: &str) -> bool {
    text.len() <= 32
        && text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.'))
}

/// Splits `host[:port]`; an IPv6 address loses its brackets.
pub(super) fn split_authority(text: &str) -> Option<(&str, Option<u16>)> {
    let text = text.trim();
    let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, rest)) => (host, rest.strip_prefix(':')),
        // A bare IPv6 address has more than one colon and no port.
        None => match text.split_once(':') {
            Some((host, port)) if !port.contains(':') => (host, Some(port)),
            _ => (text, None),
        },
    };
    let port = port
        .filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()))
        .and_then(|digits| digits.parse().ok());
    (!host.is_empty()).then_some((host, port))
}

/// The address of a `Forwarded: for=` or `X-Forwarded-For` item, without its
/// port; none for `unknown`.
pub(super) fn forwarded_address(text: &str) -> Option<String> {
    let text = text.trim();
    if text.is_empty() || text.eq_ignore_ascii_case("unknown") {
        return None;
    }
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Some(address.ip().to_string());
    }
    if let Ok(address) = text.parse::<IpAddr>() {
        return Some(address.to_string());
    }
    split_authority(text).map(|(host, _)| clean(host).into_owned())
}

/// Replaces the values of sensitive keys in a query.
pub(super) fn redact<'a>(query: &'a str, sensitive: &[Cow<'static, str>]) -> Cow<'a, str> {
    if !query.split('&').any(|pair| is_sensitive(pair, sensitive)) {
        return Cow::Borrowed(query);
    }
    let mut redacted = String::with_capacity(query.len());
    for (index, pair) in query.split('&').enumerate() {
        if index > 0 {
            redacted.push('&');
        }
        match pair.split_once('=') {
            Some((key, _)) if is_sensitive(pair, sensitive) => {
                redacted.push_str(key);
                redacted.push('=');
                redacted.push_str(REDACTED);
            }
            _ => redacted.push_str(pair),
        }
    }
    Cow::Owned(redacted)
}

/// Whether a `key=value` pair has a key of the list, however it is encoded.
fn is_sensitive(pair: &str, sensitive: &[Cow<'static, str>]) -> bool {
    let Some((key, _)) = pair.split_once('=') else {
        return false;
    };
    if key.contains('%') {
        let decoded: Cow<'_, [u8]> = percent_decode_str(key).into();
        return sensitive.iter().any(|known| known.as_bytes() == &*decoded);
    }
    sensitive.iter().any(|known| *known == key)
}

/// An absolute URL, credentials and sensitive values hidden.
pub(super) fn full(
    target: &Target<'_>,
    scheme: &str,
    host: &str,
    port: Option<u16>,
    sensitive: &[Cow<'static, str>],
) -> String {
    let query = target.query.map(|query| redact(query, sensitive));
    let mut url = String::with_capacity(
        scheme.len() + host.len() + target.path.len() + query.as_ref().map_or(0, |q| q.len()) + 16,
    );
    if !scheme.is_empty() {
        url.push_str(scheme);
        url.push_str("://");
    }
    if target.credentials {
        url.push_str(REDACTED);
        url.push(':');
        url.push_str(REDACTED);
        url.push('@');
    }
    let brackets = host.contains(':') && !host.starts_with('[');
    if brackets {
        url.push('[');
    }
    url.push_str(host);
    if brackets {
        url.push(']');
    }
    if let Some(port) = port {
        url.push(':');
        url.push_str(&port.to_string());
    }
    if target.path != "*" {
        if !scheme.is_empty() && !target.path.starts_with('/') {
            url.push('/');
        }
        url.push_str(target.path);
    }
    if let Some(query) = query {
        url.push('?');
        url.push_str(&query);
    }
    match clean(&url) {
        Cow::Borrowed(all) if all.len() == url.len() => url,
        cleaned => cleaned.into_owned(),
    }
}

/// Captured bytes as an attribute's text: what is not UTF-8 becomes U+FFFD,
/// and so does every control character; cut at [`MAX_VALUE`].
pub(super) fn text(bytes: &[u8]) -> Cow<'_, str> {
    match std::str::from_utf8(bytes) {
        Ok(text) => clean(text),
        Err(_) => {
            let bytes = bytes.get(..MAX_VALUE).unwrap_or(bytes);
            Cow::Owned(clean(&String::from_utf8_lossy(bytes)).into_owned())
        }
    }
}

/// The same for what is UTF-8 already.
pub(super) fn clean(text: &str) -> Cow<'_, str> {
    let text = text
        .get(..text.floor_char_boundary(MAX_VALUE))
        .unwrap_or_default();
    if text.bytes().all(|byte| matches!(byte, b' '..=b'~')) || !text.contains(char::is_control) {
        return Cow::Borrowed(text);
    }
    let replaced = text.replace(char::is_control, "\u{fffd}");
    Cow::Owned(
        replaced
            .get(..replaced.floor_char_boundary(MAX_VALUE))
            .unwrap_or_default()
            .to_owned(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::http1::Settings;

    #[test]
    fn takes_targets_apart() {
        let check =
            |text, connect, expected: (Option<&str>, Option<&str>, bool, &str, Option<&str>)| {
                let target = Target::new(text, connect);
                let found = (
                    target.scheme,
                    target.authority,
                    target.credentials,
                    target.path,
                    target.query,
                );
                assert_eq!(found, expected, "{text}");
            };
        check("/", false, (None, None, false, "/", None));
        check(
            "/a?b?c=/#d",
            false,
            (None, None, false, "/a", Some("b?c=/")),
        );
        check("/?", false, (None, None, false, "/", Some("")));
        check("*", false, (None, None, false, "*", None));
        check(
            "http://h",
            false,
            (Some("http"), Some("h"), false, "/", None),
        );
        check(
            "http://h?q=http://x/",
            false,
            (Some("http"), Some("h"), false, "/", Some("q=http://x/")),
        );
        check(
            "HTTP://u:p@h:8/x?y",
            false,
            (Some("HTTP"), Some("h:8"), true, "/x", Some("y")),
        );
        check("/x@y://z", false, (None, None, false, "/x@y://z", None));
        check("h:443", true, (None, Some("h:443"), false, "", None));
        check("u@h:443", true, (None, Some("h:443"), true, "", None));
        check("odd", false, (None, None, false, "odd", None));
    }

    #[test]
    fn splits_authorities() {
        let check = |text, expected| assert_eq!(split_authority(text), expected, "{text}");
        check("h", Some(("h", None)));
        check("h:80", Some(("h", Some(80))));
        check("h:", Some(("h", None)));
        check("h:x", Some(("h", None)));
        check("h:+1", Some(("h", None)));
        check("h:70000", Some(("h", None)));
        check("[::1]:8000", Some(("::1", Some(8000))));
        check("[::1]", Some(("::1", None)));
        check("::1", Some(("::1", None)));
        check("", None);
        check(":80", None);
    }

    #[test]
    fn reads_forwarded_addresses() {
        let check =
            |text, expected| assert_eq!(forwarded_address(text).as_deref(), expected, "{text}");
        check("192.0.2.43", Some("192.0.2.43"));
        check(" 192.0.2.43:47011 ", Some("192.0.2.43"));
        check("[2001:DB8::1]:4711", Some("2001:db8::1"));
        check("[2001:db8::1]", Some("2001:db8::1"));
        check("2001:db8::1", Some("2001:db8::1"));
        check("_hidden", Some("_hidden"));
        check("unknown", None);
        check("", None);
    }

    #[test]
    fn redacts_sensitive_keys() {
        let settings = Settings::default();
        let check = |query, expected| {
            assert_eq!(redact(query, &settings.sensitive_query_keys), expected);
        };
        check("", "");
        check("a=1&b", "a=1&b");
        check("sig=abc", "sig=REDACTED");
        check("sig=", "sig=REDACTED");
        check("sig", "sig");
        check("a=1&sig=a=b&c=2&", "a=1&sig=REDACTED&c=2&");
        check("%73ig=x&Sig=y&SIG=z", "%73ig=REDACTED&Sig=y&SIG=z");
        check(
            "X%2DAmz-Signature=1&X-Amz-Credential=2",
            "X%2DAmz-Signature=REDACTED&X-Amz-Credential=REDACTED",
        );
        check(
            "X-Amz-Security-Token=1&AWSAccessKeyId=2",
            "X-Amz-Security-Token=REDACTED&AWSAccessKeyId=REDACTED",
        );
        check(
            "Signature=1&X-Goog-Signature=2",
            "Signature=REDACTED&X-Goog-Signature=REDACTED",
        );
        check("mysig=1&%ff=2", "mysig=1&%ff=2");
    }

    #[test]
    fn keeps_attribute_values_printable_and_bounded() {
        assert_eq!(text(b"plain \x7e"), "plain ~");
        assert_eq!(text("gr\u{fc}n".as_bytes()), "gr\u{fc}n");
        assert_eq!(text(b"a\xffb"), "a\u{fffd}b");
        assert_eq!(text(b"a\tb\x7f"), "a\u{fffd}b\u{fffd}");
        assert_eq!(text("a\u{85}".as_bytes()), "a\u{fffd}");
        assert_eq!(
            text("\u{20ac}".repeat(MAX_VALUE).as_bytes()).len(),
            MAX_VALUE - MAX_VALUE % 3
        );
        assert!(text(&[0xff; 2 * MAX_VALUE]).len() <= MAX_VALUE);
        assert!(text(&[b'\t'; 2 * MAX_VALUE]).len() <= MAX_VALUE);
    }
}
