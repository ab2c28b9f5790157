//! Compares the spans that the in-process instrumentation makes of an
//! application with those that the agent makes of the same requests.
//!
//! Spans become fields: name, status, parent, attributes and events, with
//! what can never be equal (ids, times, ports) replaced. Every field that
//! differs is a [`Difference`], and every difference needs a [`Rule`] with its
//! reason; a rule that nothing needs is wrong too.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::trace::{Kind, Span};
use crate::traceback;

/// Attributes with a port that the system chose.
const CHOSEN_PORTS: &[&str] = &["client.port", "network.peer.port"];
/// The field with Python's own text of an exception.
const STACKTRACE: &str = "event.exception.stacktrace";

/// What one tracer saw of one run.
pub struct Side {
    /// Its spans.
    pub spans: Vec<Span>,
    /// What stands in its addresses, and what to put in their place.
    pub ports: Vec<(u16, &'static str)>,
}

/// Which side has a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum How {
    /// Only the in-process instrumentation.
    Theirs,
    /// Only the agent.
    Ours,
    /// Both, with other values.
    Other,
}

/// A field that differs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Difference {
    /// The case.
    pub case: String,
    /// `server` or `client`.
    pub kind: &'static str,
    /// Which side has it.
    pub how: How,
    /// The field.
    pub field: String,
    /// The request that it was seen in: method and target.
    pub request: String,
    /// Its value in the in-process instrumentation's span.
    pub theirs: String,
    /// Its value in the agent's span.
    pub ours: String,
}

/// A line of the file of differences: which are meant to be, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Its line in the file, from 1.
    pub line: usize,
    case: String,
    kind: String,
    target: String,
    how: How,
    /// Whether it is not there in every run.
    sometimes: bool,
    field: String,
    /// Why it is meant to be.
    pub reason: String,
}

impl Rule {
    /// Whether the difference is meant to be by this rule.
    pub fn covers(&self, difference: &Difference) -> bool {
        let (_, target) = difference.request.split_once(' ').unwrap_or_default();
        fits(&self.case, &difference.case)
            && fits(&self.kind, difference.kind)
            && fits(&self.target, target)
            && self.how == difference.how
            && fits(&self.field, &difference.field)
    }

    /// Whether a run of these cases must have such a difference.
    pub fn is_due(&self, cases: &[&str]) -> bool {
        !self.sometimes && cases.iter().any(|case| fits(&self.case, case))
    }
}

/// Reads the file of differences. A line is five words and a reason: case,
/// kind, target of the request, `-` (theirs only), `+` (ours only) or `~`
/// (another value), field. A `*` at a word's end stands for anything, a `?`
/// after the sign says that the difference is not there in every run.
pub fn rules(text: &str) -> Result<Vec<Rule>> {
    let mut rules = Vec::new();
    for (number, line) in text.lines().enumerate() {
        if line.trim().is_empty() || line.starts_with('#') {
            continue;
        }
        let rule = rule(number + 1, line).with_context(|| format!("line {}", number + 1))?;
        rules.push(rule);
    }
    Ok(rules)
}

fn rule(number: usize, line: &str) -> Result<Rule> {
    let mut words = line.split_whitespace();
    let mut word = |what: &str| {
        let word = words.next().map(str::to_owned);
        word.with_context(|| format!("no {what}"))
    };
    let (case, kind, target) = (word("case")?, word("kind")?, word("target")?);
    let sign = word("sign")?;
    let (sign, sometimes) = match sign.strip_suffix('?') {
        Some(sign) => (sign, true),
        None => (sign.as_str(), false),
    };
    let how = match sign {
        "-" => How::Theirs,
        "+" => How::Ours,
        "~" => How::Other,
        sign => bail!("{sign:?} is none of - + ~"),
    };
    let field = word("field")?;
    let reason = words.collect::<Vec<_>>().join(" ");
    if reason.is_empty() {
        bail!("no reason");
    }
    Ok(Rule {
        line: number,
        case,
        kind,
        target,
        how,
        sometimes,
        field,
        reason,
    })
}

/// Whether a word of a rule stands for the text.
fn fits(pattern: &str, text: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(start) => text.starts_with(start),
        None => pattern == text,
    }
}

/// What differs. Server spans are paired by `user_agent.original`, which is
/// the name of the request; client spans by their URL, or by their statement.
pub fn differences(case: &str, theirs: &Side, ours: &Side) -> Vec<Difference> {
    let mut found = Vec::new();
    for (kind, name) in [(Kind::Server, "server"), (Kind::Client, "client")] {
        let (theirs, ours) = (theirs.by_request(kind), ours.by_request(kind));
        let keys: BTreeSet<&String> = theirs.keys().chain(ours.keys()).collect();
        for key in keys {
            let none = Vec::new();
            let theirs = theirs.get(key).unwrap_or(&none);
            let ours = ours.get(key).unwrap_or(&none);
            let fields = compare(theirs, ours);
            found.extend(
                fields
                    .into_iter()
                    .map(|(how, field, theirs, ours)| Difference {
                        case: case.to_owned(),
                        kind: name,
                        how,
                        field,
                        request: key.clone(),
                        theirs,
                        ours,
                    }),
            );
        }
    }
    found
}

type Fields = BTreeMap<String, Value>;
type Compared = (How, String, String, String);

fn compare(theirs: &[Fields], ours: &[Fields]) -> Vec<Compared> {
    let ([theirs], [ours]) = (theirs, ours) else {
        if theirs.len() == ours.len() {
            let pairs = theirs.iter().zip(ours);
            return pairs
                .flat_map(|(theirs, ours)| {
                    compare(std::slice::from_ref(theirs), std::slice::from_ref(ours))
                })
                .collect();
        }
        let how = match (theirs.len(), ours.len()) {
            (_, 0) => How::Theirs,
            (0, _) => How::Ours,
            _ => How::Other,
        };
        let count = |spans: &[Fields]| format!("{} spans", spans.len());
        return vec![(how, "span".to_owned(), count(theirs), count(ours))];
    };
    let keys: BTreeSet<&String> = theirs.keys().chain(ours.keys()).collect();
    let mut found = Vec::new();
    for key in keys {
        let text = |value: Option<&Value>| value.map(Value::to_string).unwrap_or_default();
        let (one, other) = (theirs.get(key), ours.get(key));
        let how = match (one, other) {
            (Some(_), None) => How::Theirs,
            (None, Some(_)) => How::Ours,
            (Some(one), Some(other)) if same(key, one, other) => continue,
            _ => How::Other,
        };
        found.push((how, key.clone(), text(one), text(other)));
    }
    found
}

fn same(field: &str, theirs: &Value, ours: &Value) -> bool {
    match (theirs, ours) {
        (Value::String(theirs), Value::String(ours)) if field == STACKTRACE => {
            // Their own frames lie among the application's and the framework's.
            let theirs = traceback::without_frames_of(theirs, "/opentelemetry/");
            traceback::difference(ours, &theirs, "/apps/").is_none()
        }
        _ => theirs == ours,
    }
}

impl Side {
    /// The fields of the spans of a kind, by request.
    fn by_request(&self, kind: Kind) -> BTreeMap<String, Vec<Fields>> {
        let mut found: BTreeMap<String, Vec<Fields>> = BTreeMap::new();
        for span in self.spans.iter().filter(|span| span.kind == kind) {
            let request = match kind {
                Kind::Server => span.text("user_agent.original").to_owned(),
                _ => match span.text("db.system.name") {
                    "" => {
                        let method = span.text("http.request.method");
                        format!("{method} {}", self.text(span.text("url.full")))
                    }
                    system => format!("{system} {}", query(span)),
                },
            };
            // The first answer, which told that the service is up.
            if !request.is_empty() {
                found.entry(request).or_default().push(self.fields(span));
            }
        }
        found
    }

    fn fields(&self, span: &Span) -> Fields {
        let mut fields = Fields::new();
        fields.insert("name".into(), self.text(&span.name).into());
        fields.insert("parent".into(), self.parent(span).into());
        fields.insert(
            "status".into(),
            json!(if span.error { "error" } else { "unset" }),
        );
        if !span.message.is_empty() {
            fields.insert("status.message".into(), self.text(&span.message).into());
        }
        for (key, value) in &span.attributes {
            fields.insert(key.clone(), self.attribute(key, value));
        }
        for event in &span.events {
            fields.insert(format!("event.{}", event.name), json!(true));
            for (key, value) in &event.attributes {
                fields.insert(format!("event.{key}"), self.attribute(key, value));
            }
        }
        fields
    }

    /// Whose child it is, as far as that can be the same twice.
    fn parent(&self, span: &Span) -> String {
        match &span.parent {
            None => "none".to_owned(),
            Some(id) if span.remote => format!("remote {id}"),
            Some(id) => {
                let parent = self.spans.iter().find(|other| other.span_id == *id);
                parent.map_or("unknown".to_owned(), |parent| {
                    // Steps in between are the in-process instrumentation's.
                    match parent.kind {
                        Kind::Internal => self.parent(parent),
                        _ => format!("of {}", parent.text("user_agent.original")),
                    }
                })
            }
        }
    }

    fn attribute(&self, key: &str, value: &Value) -> Value {
        match value {
            Value::Number(number) => {
                let known = number.as_u64().and_then(|number| {
                    let mut ports = self.ports.iter();
                    ports.find(|(port, _)| u64::from(*port) == number)
                });
                match known {
                    Some((_, name)) => json!(name),
                    None if CHOSEN_PORTS.contains(&key) => json!("a port"),
                    None => value.clone(),
                }
            }
            Value::String(text) => self.text(text).into(),
            other => other.clone(),
        }
    }

    fn text(&self, text: &str) -> String {
        let replace = |text: String, (port, name): &(u16, &str)| {
            text.replace(&format!(":{port}"), &format!(":{name}"))
        };
        self.ports.iter().fold(text.to_owned(), replace)
    }
}

/// A query's text as a word, whatever stands in the places of its values; its
/// name where it has no text.
fn query(span: &Span) -> String {
    let text = match span.text("db.query.text") {
        "" => span.name.as_str(),
        text => text,
    };
    let mut word = String::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let place = match first {
            '%' if rest.starts_with("%s") => Some(2),
            '%' if rest.starts_with("%(") => rest.find(")s").map(|end| end + 2),
            '$' => Some(1 + rest[1..].bytes().take_while(u8::is_ascii_digit).count()),
            _ => None,
        };
        word.push(match place {
            Some(_) => '?',
            None if first.is_whitespace() => '_',
            None => first,
        });
        rest = &rest[place.unwrap_or(first.len_utf8())..];
    }
    // A rule is read by people, and a statement's beginning tells it apart.
    word.chars().take(60).collect()
}

impl fmt::Display for How {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Theirs => "-",
            Self::Ours => "+",
            Self::Other => "~",
        })
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            case,
            kind,
            how,
            field,
            request,
            theirs,
            ours,
        } = self;
        write!(formatter, "{case} {kind} {request} {how} {field}")?;
        match how {
            How::Theirs => write!(formatter, " {theirs}"),
            How::Ours => write!(formatter, " {ours}"),
            How::Other => write!(formatter, " {theirs} | {ours}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(kind: Kind, attributes: Value) -> Span {
        let Value::Object(attributes) = attributes else {
            panic!("attributes are an object");
        };
        Span {
            name: "GET".to_owned(),
            kind,
            trace_id: "t".to_owned(),
            span_id: "s".to_owned(),
            parent: None,
            remote: false,
            flags: 1,
            trace_state: String::new(),
            start: 0,
            end: 1,
            error: false,
            message: String::new(),
            events: Vec::new(),
            attributes: attributes.into_iter().collect(),
            resource: BTreeMap::new(),
            scope: String::new(),
        }
    }

    fn side(spans: Vec<Span>, port: u16) -> Side {
        Side {
            spans,
            ports: vec![(port, "APP")],
        }
    }

    fn served(attributes: Value) -> Span {
        let mut span = span(Kind::Server, attributes);
        let request = json!("GET /plain");
        span.attributes
            .insert("user_agent.original".into(), request);
        span
    }

    fn lines(theirs: Vec<Span>, ours: Vec<Span>) -> Vec<String> {
        let found = differences("flask", &side(theirs, 8001), &side(ours, 8002));
        found.iter().map(Difference::to_string).collect()
    }

    #[test]
    fn ports_are_no_difference() {
        let theirs = json!({"server.port": 8001, "client.port": 5, "url.full": "http://h:8001/"});
        let ours = json!({"server.port": 8002, "client.port": 6, "url.full": "http://h:8002/"});
        assert!(lines(vec![served(theirs)], vec![served(ours)]).is_empty());
    }

    #[test]
    fn every_other_field_is_a_difference() {
        let theirs = json!({"one": 1, "both": "a"});
        let ours = json!({"two": 2, "both": "b"});
        assert_eq!(
            lines(vec![served(theirs)], vec![served(ours)]),
            [
                "flask server GET /plain ~ both \"a\" | \"b\"",
                "flask server GET /plain - one 1",
                "flask server GET /plain + two 2",
            ]
        );
    }

    #[test]
    fn a_span_that_only_one_side_has_is_a_difference() {
        let found = lines(vec![served(json!({}))], Vec::new());
        assert_eq!(found, ["flask server GET /plain - span 1 spans"]);
        let call = |url: &str| {
            span(
                Kind::Client,
                json!({"http.request.method": "GET", "url.full": url}),
            )
        };
        let found = lines(vec![call("http://h:8001/")], vec![call("http://h:8002/x")]);
        assert_eq!(found.len(), 2, "{found:?}");
    }

    #[test]
    fn a_rule_covers_what_it_names_and_no_more() {
        let rules = rules("# why\n\nflask server /plain + code.* Only we know.\n").unwrap();
        let [rule] = rules.as_slice() else {
            panic!("{rules:?}");
        };
        assert_eq!((rule.line, rule.reason.as_str()), (3, "Only we know."));
        let difference = Difference {
            case: "flask".to_owned(),
            kind: "server",
            how: How::Ours,
            field: "code.line.number".to_owned(),
            request: "GET /plain".to_owned(),
            theirs: String::new(),
            ours: "3".to_owned(),
        };
        assert!(rule.covers(&difference));
        for change in [
            |difference: &mut Difference| difference.case = "django".to_owned(),
            |difference: &mut Difference| difference.kind = "client",
            |difference: &mut Difference| difference.how = How::Other,
            |difference: &mut Difference| difference.field = "name".to_owned(),
            |difference: &mut Difference| difference.request = "GET /boom".to_owned(),
        ] {
            let mut other = difference.clone();
            change(&mut other);
            assert!(!rule.covers(&other), "{other}");
        }
    }

    #[test]
    fn a_rule_is_due_where_its_case_is_run_unless_it_says_otherwise() {
        let rules = rules("flask* server * + name A.\nflask* server * +? name B.\n").unwrap();
        let due =
            |cases: &[&str]| -> Vec<bool> { rules.iter().map(|rule| rule.is_due(cases)).collect() };
        assert_eq!(due(&["django", "flask_app"]), [true, false]);
        assert_eq!(due(&["django"]), [false, false]);
    }

    #[test]
    fn a_rule_needs_a_sign_and_a_reason() {
        assert!(rules("flask server * + name\n").is_err());
        assert!(rules("flask server * ! name Because.\n").is_err());
    }
}
