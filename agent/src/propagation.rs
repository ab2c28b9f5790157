//! Trace context as it travels with requests (W3C Trace Context, level 2).
//!
//! Only reads; what is put on the wire is decided where bytes are sent.

/// A caller's span context.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceContext {
    /// Trace id, never all zero.
    pub trace_id: [u8; 16],
    /// The caller's span id, never all zero.
    pub span_id: [u8; 8],
    /// W3C trace flags.
    pub flags: u8,
    /// The `tracestate` list as received, members joined by commas; empty
    /// where absent or invalid.
    pub state: String,
}

/// Members that a `tracestate` list may hold (section 3.3.1.1).
pub const MAX_STATE_MEMBERS: usize = 32;

impl TraceContext {
    /// Reads a `traceparent` header and the `tracestate` headers beside it.
    ///
    /// A request with several `traceparent` headers has no valid one; the
    /// caller sees to that. An invalid list is dropped and the rest is kept
    /// (section 4.3).
    pub fn parse<'a>(traceparent: &str, tracestate: impl Iterator<Item = &'a str>) -> Option<Self> {
        let (trace_id, span_id, flags) = parent(traceparent.trim_matches(OWS))?;
        Some(Self {
            trace_id,
            span_id,
            flags,
            state: state(tracestate).unwrap_or_default(),
        })
    }
}

/// Optional white space around a header's value and around list members.
const OWS: [char; 2] = [' ', '\t'];

/// `version "-" trace-id "-" parent-id "-" trace-flags`, section 3.2.
fn parent(text: &str) -> Option<([u8; 16], [u8; 8], u8)> {
    let mut fields = text.splitn(5, '-');
    let [version] = hex::<1>(fields.next()?)?;
    let trace_id = hex::<16>(fields.next()?)?;
    let span_id = hex::<8>(fields.next()?)?;
    let [flags] = hex::<1>(fields.next()?)?;
    // Later versions may append fields, but only after another dash.
    let more = fields.next().is_some();
    if version == 0xff || (version == 0 && more) || trace_id == [0; 16] || span_id == [0; 8] {
        return None;
    }
    Some((trace_id, span_id, flags))
}

/// Exactly `N` bytes in lower-case hexadecimal.
fn hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let (digits, rest) = text.as_bytes().as_chunks::<2>();
    if digits.len() != N || !rest.is_empty() {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, [high, low]) in bytes.iter_mut().zip(digits) {
        *byte = nibble(*high)? << 4 | nibble(*low)?;
    }
    Some(bytes)
}

fn nibble(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

/// Joins the headers' members in order; none where the list is invalid.
fn state<'a>(headers: impl Iterator<Item = &'a str>) -> Option<String> {
    let mut joined = String::new();
    let mut keys: Vec<&str> = Vec::new();
    for member in headers.flat_map(|header| header.split(',')) {
        let member = member.trim_matches(OWS);
        // Empty members are allowed and say nothing (section 3.3.1.1).
        if member.is_empty() {
            continue;
        }
        let (key, value) = member.split_once('=')?;
        let full = keys.len() == MAX_STATE_MEMBERS;
        if full || keys.contains(&key) || !is_key(key) || !is_value(value) {
            return None;
        }
        keys.push(key);
        if !joined.is_empty() {
            joined.push(',');
        }
        joined.push_str(member);
    }
    Some(joined)
}

/// `simple-key / multi-tenant-key`, section 3.3.1.3.1.
fn is_key(key: &str) -> bool {
    match key.split_once('@') {
        None => {
            key.len() <= 256
                && key.starts_with(|c: char| c.is_ascii_lowercase())
                && is_key_rest(key)
        }
        Some((tenant, system)) => {
            (1..=241).contains(&tenant.len())
                && tenant.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
                && is_key_rest(tenant)
                && system.len() <= 14
                && system.starts_with(|c: char| c.is_ascii_lowercase())
                && is_key_rest(system)
        }
    }
}

fn is_key_rest(text: &str) -> bool {
    text.bytes()
        .all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-' | b'*' | b'/'))
}

/// `0*255(chr) nblk-chr`, section 3.3.1.3.2: it does not end with a space.
fn is_value(value: &str) -> bool {
    (1..=256).contains(&value.len())
        && !value.ends_with(' ')
        && value
            .bytes()
            .all(|byte| matches!(byte, b' '..=b'~') && byte != b',' && byte != b'=')
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    const SPAN: &str = "00f067aa0ba902b7";

    #[track_caller]
    fn check(traceparent: &str, expected: Option<u8>) {
        let found = TraceContext::parse(traceparent, [].into_iter());
        assert_eq!(found.as_ref().map(|c| c.flags), expected, "{traceparent:?}");
        if let Some(context) = found {
            assert_eq!(context.trace_id[..3], [0x4b, 0xf9, 0x2f]);
            assert_eq!(context.trace_id[15], 0x36);
            assert_eq!(
                context.span_id,
                [0x00, 0xf0, 0x67, 0xaa, 0x0b, 0xa9, 0x02, 0xb7]
            );
            assert_eq!(context.state, "");
        }
    }

    #[track_caller]
    fn check_state(headers: &[&str], expected: &str) {
        let parent = format!("00-{TRACE}-{SPAN}-01");
        let found = TraceContext::parse(&parent, headers.iter().copied()).map(|c| c.state);
        assert_eq!(found.as_deref(), Some(expected), "{headers:?}");
    }

    #[test]
    fn accepts_what_the_grammar_allows() {
        check(&format!("00-{TRACE}-{SPAN}-00"), Some(0));
        check(&format!("00-{TRACE}-{SPAN}-01"), Some(1));
        check(&format!("00-{TRACE}-{SPAN}-03"), Some(3));
        check(&format!("00-{TRACE}-{SPAN}-ff"), Some(0xff));
        check(&format!("  00-{TRACE}-{SPAN}-01\t"), Some(1));
    }

    #[test]
    fn accepts_longer_headers_of_later_versions_only() {
        check(&format!("00-{TRACE}-{SPAN}-01-"), None);
        check(&format!("00-{TRACE}-{SPAN}-01-what"), None);
        check(&format!("01-{TRACE}-{SPAN}-01"), Some(1));
        check(&format!("cc-{TRACE}-{SPAN}-01-"), Some(1));
        check(&format!("cc-{TRACE}-{SPAN}-01-what-the-future"), Some(1));
        check(&format!("cc-{TRACE}-{SPAN}-01.what"), None);
        check(&format!("cc-{TRACE}-{SPAN}-012"), None);
        check(&format!("ff-{TRACE}-{SPAN}-01"), None);
        check(&format!("ff-{TRACE}-{SPAN}-01-more"), None);
    }

    #[test]
    fn refuses_zero_ids() {
        check(&format!("00-{}-{SPAN}-01", "0".repeat(32)), None);
        check(&format!("00-{TRACE}-{}-01", "0".repeat(16)), None);
    }

    #[test]
    fn refuses_wrong_lengths_and_digits() {
        for wrong in [
            String::new(),
            "00".to_owned(),
            "-".to_owned(),
            "----".to_owned(),
            format!("00-{TRACE}-{SPAN}"),
            format!("00-{TRACE}-{SPAN}-"),
            format!("00-{TRACE}-{SPAN}-1"),
            format!("00-{TRACE}-{SPAN}-001"),
            format!("0-{TRACE}-{SPAN}-01"),
            format!("000-{TRACE}-{SPAN}-01"),
            format!("00-{TRACE}0-{SPAN}-01"),
            format!("00-{}-{SPAN}-01", TRACE.to_uppercase()),
            format!("00-{TRACE}-{}-01", SPAN.to_uppercase()),
            format!("00-{TRACE}-{SPAN}-0A"),
            format!("0x-{TRACE}-{SPAN}-01"),
            format!("00_{TRACE}_{SPAN}_01"),
            format!("00-{TRACE}-{SPAN}- 1"),
            format!("00-{}-{SPAN}-01", TRACE.replace('4', "é")),
            format!("00-{TRACE}-{SPAN}-01,00-{TRACE}-{SPAN}-01"),
        ] {
            check(&wrong, None);
        }
    }

    #[test]
    fn joins_state_headers_in_order() {
        check_state(&[], "");
        check_state(&[""], "");
        check_state(&["foo=1"], "foo=1");
        check_state(&["foo=1", "bar=2"], "foo=1,bar=2");
        check_state(
            &["foo=1 ,\t bar=2,", " ", "rojo=00f067aa"],
            "foo=1,bar=2,rojo=00f067aa",
        );
        check_state(&["a=x y"], "a=x y");
        check_state(&["a= x"], "a= x");
    }

    #[test]
    fn drops_invalid_state_and_keeps_the_parent() {
        for wrong in [
            "foo",
            "foo=",
            "=1",
            "Foo=1",
            "foo=1,foo=2",
            "foo =1",
            "foo=a=b",
            "1foo=1",
            "foo@=1",
            "@bar=1",
            "foo@1bar=1",
            "foo@bar@baz=1",
            "foo.bar=1",
            "foo=\u{7f}",
            "foo=é",
            "fo\u{0}=1",
        ] {
            check_state(&["ok=1", wrong], "");
        }
    }

    #[test]
    fn bounds_state_keys_values_and_members() {
        let key = |n| format!("{}=1", "k".repeat(n));
        check_state(&[&key(256)], &key(256));
        check_state(&[&key(257)], "");
        let tenant = |t, s| format!("{}@{}=1", "1".repeat(t), "v".repeat(s));
        check_state(&[&tenant(241, 14)], &tenant(241, 14));
        check_state(&[&tenant(242, 14)], "");
        check_state(&[&tenant(241, 15)], "");
        let value = |n| format!("a={}", "v".repeat(n));
        check_state(&[&value(256)], &value(256));
        check_state(&[&value(257)], "");
        let members = |n| {
            (0..n)
                .map(|i| format!("k{i}=1"))
                .collect::<Vec<_>>()
                .join(",")
        };
        check_state(&[&members(32)], &members(32));
        check_state(&[&members(33)], "");
        check_state(&[&members(32), "z=1"], "");
    }
}
