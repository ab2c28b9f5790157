//! A waterfall of each trace for a reader at a terminal.
//!
//! Spans of a trace come in pieces, so they are held until the trace seems
//! whole: shortly after its root has come, or after a bounded wait. What is
//! shown is bounded too, and everything that came from outside is stripped of
//! characters that could steer the terminal.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write;
use std::time::Duration;

use tokio::time::Instant;
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

use super::write::Writer;
use super::{Delivery, Exporter, Exporting};
use crate::assemble::Span;
use crate::attribute::Value;
use crate::protocol::{Role, Status};

/// How a waterfall looks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Style {
    /// Columns of the terminal.
    pub width: usize,
    /// Whether to use colors.
    pub color: bool,
}

impl Style {
    /// Takes the width from `COLUMNS`, and colors where the output is a
    /// terminal, unless `NO_COLOR` is set (no-color.org) or `TERM` is dumb.
    pub fn from(environment: impl Fn(&str) -> Option<String>, is_terminal: bool) -> Self {
        let width = environment("COLUMNS").and_then(|columns| columns.parse().ok());
        let no_color = environment("NO_COLOR").is_some_and(|value| !value.is_empty());
        let dumb = environment("TERM").is_some_and(|term| term == "dumb");
        Self {
            width: width.unwrap_or(100).clamp(MIN_WIDTH, MAX_WIDTH),
            color: is_terminal && !no_color && !dumb,
        }
    }
}

/// The console exporter.
pub struct Console {
    writer: Writer,
    style: Style,
    held: HashMap<[u8; 16], Held>,
    held_spans: usize,
}

/// The spans of a trace that wait for the rest.
struct Held {
    spans: Vec<Span>,
    first: Instant,
    last: Instant,
    wait: Duration,
}

/// How long a trace waits for another span once its root has come: children
/// end before it, but may be reported a moment after.
const SETTLE: Duration = Duration::from_millis(100);

/// The same where the root was called from elsewhere, and more of the trace
/// may come from there.
const LINGER: Duration = Duration::from_secs(1);

/// The same where no root has come.
const PATIENCE: Duration = Duration::from_secs(5);

/// Longest time for which a trace waits.
const MAX_AGE: Duration = Duration::from_secs(30);

/// Traces and spans that may wait; beyond, the oldest is shown as it is.
const MAX_TRACES: usize = 256;
const MAX_SPANS: usize = 8_192;

/// Spans of a trace that are shown.
const MAX_LINES: usize = 100;

/// Levels by which a span is indented.
const MAX_DEPTH: usize = 12;

/// Columns that a waterfall may have.
const MIN_WIDTH: usize = 60;
const MAX_WIDTH: usize = 240;

impl Console {
    /// Shows traces on `output`.
    pub fn new(output: impl Write + Send + 'static, style: Style) -> Self {
        Self {
            writer: Writer::new("standard output".to_owned(), output),
            style,
            held: HashMap::new(),
            held_spans: 0,
        }
    }

    /// Holds the spans and returns the text of what is to be shown now.
    fn take(&mut self, spans: Vec<Span>, now: Instant) -> String {
        let mut text = String::new();
        for span in spans {
            let held = self.held.entry(span.trace_id).or_insert_with(|| Held {
                spans: Vec::new(),
                first: now,
                last: now,
                wait: PATIENCE,
            });
            let wait = match span.parent {
                None => SETTLE,
                Some(parent) if parent.remote => LINGER,
                Some(_) => PATIENCE,
            };
            held.last = now;
            held.wait = held.wait.min(wait);
            held.spans.push(span);
            self.held_spans += 1;
            if self.held.len() > MAX_TRACES || self.held_spans > MAX_SPANS {
                let oldest = self.held.iter().min_by_key(|(_, held)| held.first);
                if let Some((&trace, _)) = oldest {
                    self.show(trace, &mut text);
                }
            }
        }
        self.show_if(&mut text, |held| {
            now - held.last >= held.wait || now - held.first >= MAX_AGE
        });
        text
    }

    /// Shows the traces of which `is_due` holds, in the order of their start.
    fn show_if(&mut self, text: &mut String, is_due: impl Fn(&Held) -> bool) {
        let mut due: Vec<_> = self
            .held
            .iter()
            .filter(|(_, held)| is_due(held))
            .map(|(&trace, held)| (held.spans.iter().map(|span| span.start).min(), trace))
            .collect();
        due.sort_unstable();
        for (_, trace) in due {
            self.show(trace, text);
        }
    }

    fn show(&mut self, trace: [u8; 16], text: &mut String) {
        if let Some(held) = self.held.remove(&trace) {
            self.held_spans -= held.spans.len();
            text.push_str(&render(&held.spans, &self.style));
        }
    }

    fn write(&mut self, text: String) -> Exporting<'_> {
        Box::pin(async move {
            self.writer.write(text.into_bytes()).await?;
            Ok(Delivery::default())
        })
    }
}

impl Exporter for Console {
    fn name(&self) -> &'static str {
        "console"
    }

    fn export(&mut self, spans: Vec<Span>) -> Exporting<'_> {
        let text = self.take(spans, Instant::now());
        self.write(text)
    }

    fn is_live(&self) -> bool {
        true
    }

    fn finish(&mut self) -> Exporting<'_> {
        let mut text = String::new();
        self.show_if(&mut text, |_| true);
        self.write(text)
    }
}

// === The waterfall ===

/// A trace as text: a line with its id, a line per span, an empty line.
pub fn render(spans: &[Span], style: &Style) -> String {
    let Some(start) = spans.iter().map(|span| span.start).min() else {
        return String::new();
    };
    let end = spans
        .iter()
        .map(|span| span.end)
        .max()
        .unwrap_or(start)
        .max(start);
    let rows = rows(spans);
    let shown = &rows[..rows.len().min(MAX_LINES)];
    let columns = Columns::fit(shown, style.width);
    let mut text = String::new();
    header(&mut text, spans, start, end, style);
    for row in shown {
        line(&mut text, row, &columns, (start, end), style);
    }
    if let Some(hidden) = rows.get(MAX_LINES..).filter(|hidden| !hidden.is_empty()) {
        let errors = hidden.iter().filter(|row| is_error(row.span)).count();
        let note = format!(
            "  … {}{}",
            plural(hidden.len(), "more span"),
            error_note(errors)
        );
        paint(&mut text, &note, Ink::Dim, style);
        text.push('\n');
    }
    text.push('\n');
    text
}

/// A span and its place in the tree.
struct Row<'a> {
    span: &'a Span,
    /// Branches to its left.
    branches: String,
    /// What continues below its marker where it has a message.
    stem: String,
    service: String,
    label: Label,
    outcome: String,
}

/// The words of a span: its name and a detail.
struct Label {
    marker: &'static str,
    name: String,
    detail: String,
}

/// Puts spans into the order of the tree. Spans whose parent is not here, and
/// one span of each circle, are roots.
fn rows(spans: &[Span]) -> Vec<Row<'_>> {
    let mut order: Vec<usize> = (0..spans.len()).collect();
    order.sort_by_key(|&idx| {
        spans
            .get(idx)
            .map(|span| (span.start, std::cmp::Reverse(span.end)))
    });
    let mut by_id = HashMap::new();
    for (idx, span) in spans.iter().enumerate() {
        by_id.entry(span.span_id).or_insert(idx);
    }
    let mut children: HashMap<usize, Vec<usize>> = HashMap::new();
    let mut roots = Vec::new();
    for &idx in &order {
        let parent = spans.get(idx).and_then(|span| span.parent);
        match parent.and_then(|parent| by_id.get(&parent.span_id)) {
            Some(&parent) if parent != idx => children.entry(parent).or_default().push(idx),
            _ => roots.push(idx),
        }
    }
    let mut rows = Vec::with_capacity(spans.len());
    let mut seen = vec![false; spans.len()];
    // After the true roots, every span not yet reached is tried as one: it is
    // in a circle, or below one.
    for root in roots.into_iter().chain(order) {
        let mut stack = vec![(root, 0_usize, true, String::new())];
        while let Some((idx, depth, is_last, above)) = stack.pop() {
            let (Some(span), Some(seen)) = (spans.get(idx), seen.get_mut(idx)) else {
                continue;
            };
            if std::mem::replace(seen, true) {
                continue;
            }
            let below = children.remove(&idx).unwrap_or_default();
            let (branch, rail) = match (depth, is_last) {
                (0, _) => ("", ""),
                (_, true) => ("└─", "  "),
                (_, false) => ("├─", "│ "),
            };
            let stem = if depth > MAX_DEPTH {
                above.clone()
            } else {
                format!("{above}{rail}")
            };
            for (count, child) in below.iter().rev().enumerate() {
                stack.push((*child, depth + 1, count == 0, stem.clone()));
            }
            // Rows that will not be shown are only counted.
            let is_shown = rows.len() < MAX_LINES;
            rows.push(Row {
                span,
                branches: if depth > MAX_DEPTH {
                    above
                } else {
                    format!("{above}{branch}")
                },
                stem: format!("{stem}{}", if below.is_empty() { "  " } else { "│ " }),
                service: if is_shown {
                    clean(span.resource.service_name())
                } else {
                    String::new()
                },
                label: if is_shown {
                    label(span, depth)
                } else {
                    Label::hidden()
                },
                outcome: if is_shown {
                    outcome(span)
                } else {
                    String::new()
                },
            });
        }
    }
    rows
}

impl Label {
    fn hidden() -> Self {
        Self {
            marker: "",
            name: String::new(),
            detail: String::new(),
        }
    }
}

/// Attributes that say what a span is about, the most telling first.
const DETAILS: &[&str] = &[
    "url.path",
    "url.full",
    "db.query.text",
    "messaging.destination.name",
    "server.address",
];

/// Attributes that say how a span ended, the most telling first.
const OUTCOMES: &[&str] = &[
    "http.response.status_code",
    "rpc.status_code",
    "db.response.status_code",
    "error.type",
];

fn label(span: &Span, depth: usize) -> Label {
    let name = clean(&span.exchange.name);
    let detail = DETAILS
        .iter()
        .find_map(|key| attribute(span, key))
        .map(|text| clean(text.strip_prefix("http://").unwrap_or(&text)))
        // A name that ends with it has said it.
        .filter(|detail| !name.ends_with(detail.as_str()))
        .unwrap_or_default();
    // Which database it was stands before what it was asked.
    let detail = match attribute(span, "db.system.name") {
        Some(system) => format!("{}: {detail}", clean(&system)),
        None => detail,
    };
    Label {
        marker: match (span.role, span.parent.is_some() && depth == 0) {
            (Role::Server, false) => "← ",
            (Role::Client, false) => "→ ",
            (Role::Server, true) => "⋯ ← ",
            (Role::Client, true) => "⋯ → ",
        },
        name,
        detail,
    }
}

fn outcome(span: &Span) -> String {
    let text = OUTCOMES
        .iter()
        .find_map(|key| attribute(span, key))
        .map(|text| clean(&text))
        .or_else(|| returned(span))
        .unwrap_or_default();
    match (is_error(span), text.is_empty()) {
        (true, true) => "✗".to_owned(),
        (true, false) => format!("✗ {text}"),
        (false, _) => text,
    }
}

/// How many rows a query returned.
fn returned(span: &Span) -> Option<String> {
    let count = attribute(span, "db.response.returned_rows")?;
    let unit = if count == "1" { "row" } else { "rows" };
    Some(format!("{count} {unit}"))
}

fn attribute(span: &Span, key: &str) -> Option<String> {
    let (_, value) = span
        .exchange
        .attributes
        .iter()
        .find(|(known, _)| known == key)?;
    Some(match value {
        Value::Str(text) => text.chars().take(MAX_WIDTH).collect(),
        Value::Int(number) => number.to_string(),
        Value::Double(number) => number.to_string(),
        Value::Bool(flag) => flag.to_string(),
        Value::StrArray(_) => return None,
    })
}

fn is_error(span: &Span) -> bool {
    matches!(span.exchange.status, Status::Error(_))
}

/// Widths of the columns.
struct Columns {
    service: usize,
    label: usize,
    outcome: usize,
    bar: usize,
}

/// Width of the widest time, `999 ms` or `1m 05s`, and a little air.
const TIME_WIDTH: usize = 7;

impl Columns {
    fn fit(rows: &[Row<'_>], width: usize) -> Self {
        let widest = |text: fn(&Row<'_>) -> usize, min, max| {
            rows.iter().map(text).max().unwrap_or(0).clamp(min, max)
        };
        let service = widest(|row| row.service.width(), 1, 16);
        let outcome = widest(|row| row.outcome.width(), 3, 16);
        let bar = (width / 4).clamp(10, 40);
        // Two columns of margin, and two before each column but the first.
        let taken = 2 + service + 2 + 2 + outcome + 2 + TIME_WIDTH + 2 + bar;
        Self {
            service,
            label: width.saturating_sub(taken).max(12),
            outcome,
            bar,
        }
    }
}

fn header(text: &mut String, spans: &[Span], start: u64, end: u64, style: &Style) {
    let Some(first) = spans.first() else {
        return;
    };
    let id = first.trace_id.iter().fold(String::new(), |mut id, byte| {
        // Writing to a string does not fail.
        let _ = write!(id, "{byte:02x}");
        id
    });
    let errors = spans.iter().filter(|span| is_error(span)).count();
    let ink = if errors > 0 { Ink::Error } else { Ink::Good };
    paint(text, "●", ink, style);
    text.push(' ');
    paint(text, "trace ", Ink::Dim, style);
    paint(text, &id, Ink::Strong, style);
    let facts = format!(
        "  {}  {}  {}",
        time_of_day(start),
        duration(end - start),
        plural(spans.len(), "span")
    );
    paint(text, &facts, Ink::Dim, style);
    if errors > 0 {
        paint(text, &error_note(errors), Ink::Error, style);
    }
    text.push('\n');
}

fn line(
    text: &mut String,
    row: &Row<'_>,
    columns: &Columns,
    (start, end): (u64, u64),
    style: &Style,
) {
    let service_ink = Ink::of_service(row.span.resource.service_name());
    let is_error = is_error(row.span);
    let mut cells = Cells::default();
    cells.gap(2);
    cells.put(&cut(&row.service, columns.service), service_ink);
    cells.gap_to(2 + columns.service + 2);
    let label_end = 2 + columns.service + 2 + columns.label;
    cells.put(&row.branches, Ink::Dim);
    cells.put(row.label.marker, service_ink);
    let name_ink = if is_error { Ink::Error } else { Ink::Strong };
    cells.put(
        &cut(
            &row.label.name,
            label_end.saturating_sub(cells.width).max(4),
        ),
        name_ink,
    );
    let space = label_end.saturating_sub(cells.width + 2);
    if !row.label.detail.is_empty() && space >= 4 {
        cells.gap(2);
        cells.put(&cut(&row.label.detail, space), Ink::Dim);
    }
    let outcome = cut(&row.outcome, columns.outcome);
    let outcome_end = label_end + 2 + columns.outcome;
    cells.gap_to(outcome_end - outcome.width());
    cells.put(&outcome, if is_error { Ink::Error } else { Ink::Good });
    let took = duration(row.span.end.saturating_sub(row.span.start));
    let took_end = outcome_end + 2 + TIME_WIDTH;
    cells.gap_to(took_end.saturating_sub(took.width()));
    cells.put(&took, Ink::Plain);
    cells.gap_to(took_end + 2);
    let (lead, bar) = bar(row.span, start, end, columns.bar);
    cells.gap(lead);
    cells.put(&bar, if is_error { Ink::Error } else { service_ink });
    cells.write(text, style);
    if let Status::Error(message) = &row.span.exchange.status
        && !message.is_empty()
    {
        let mut cells = Cells::default();
        cells.gap_to(2 + columns.service + 2);
        cells.put(&row.stem, Ink::Dim);
        let first = message.lines().next().unwrap_or_default();
        let first: String = first.chars().take(MAX_WIDTH).collect();
        cells.put(
            &cut(&clean(&first), style.width.saturating_sub(cells.width)),
            Ink::Error,
        );
        cells.write(text, style);
    }
}

/// The bar of a span in that of its trace: the empty cells before it, and it.
/// A half of a cell is the least that is shown.
fn bar(span: &Span, start: u64, end: u64, width: usize) -> (usize, String) {
    let halves = width as u64 * 2;
    let total = u128::from((end - start).max(1));
    let place = |time: u64| {
        let offset = u128::from(time.clamp(start, end) - start);
        u64::try_from((offset * u128::from(halves) + total / 2) / total).unwrap_or(halves)
    };
    let from = place(span.start).min(halves - 1);
    let to = place(span.end).clamp(from + 1, halves);
    let mut bar = String::new();
    for cell in from / 2..to.div_ceil(2) {
        bar.push(match (from <= cell * 2, to >= cell * 2 + 2) {
            (true, true) => '━',
            (true, false) => '╸',
            (false, _) => '╺',
        });
    }
    (usize::try_from(from / 2).unwrap_or(0), bar)
}

/// The time of day in UTC.
fn time_of_day(nanos: u64) -> String {
    let millis = nanos / 1_000_000 % 86_400_000;
    let (hours, minutes) = (millis / 3_600_000, millis / 60_000 % 60);
    let (seconds, millis) = (millis / 1_000 % 60, millis % 1_000);
    format!("{hours:02}:{minutes:02}:{seconds:02}.{millis:03}Z")
}

/// A time with three digits.
fn duration(nanos: u64) -> String {
    if nanos >= 60_000_000_000 {
        let seconds = nanos / 1_000_000_000;
        return format!("{}m {:02}s", seconds / 60, seconds % 60);
    }
    // Each unit begins where the one before it would be rounded to 1000.
    let (unit, name) = match nanos {
        0..1_000 => return format!("{nanos} ns"),
        1_000..999_500 => (1_000.0, "µs"),
        999_500..999_500_000 => (1_000_000.0, "ms"),
        _ => (1_000_000_000.0, "s"),
    };
    let value = nanos as f64 / unit;
    let digits = match value {
        ..9.995 => 2,
        ..99.95 => 1,
        _ => 0,
    };
    format!("{value:.digits$} {name}")
}

fn plural(count: usize, noun: &str) -> String {
    let s = if count == 1 { "" } else { "s" };
    format!("{count} {noun}{s}")
}

fn error_note(errors: usize) -> String {
    match errors {
        0 => String::new(),
        errors => format!(", {}", plural(errors, "error")),
    }
}

// === Text and color ===

/// The text without characters that could steer a terminal: control
/// characters, and those that reorder or hide others.
fn clean(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    for char in text.chars().take(MAX_WIDTH) {
        let is_unsafe = char.is_control()
            || matches!(
                char,
                '\u{61c}' | '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
                    | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}'
                    | '\u{e0000}'..='\u{e007f}'
            );
        match char {
            '\n' | '\t' | '\r' => clean.push(' '),
            _ if is_unsafe => clean.push('�'),
            _ => clean.push(char),
        }
    }
    clean
}

/// The text, cut to a width.
fn cut(text: &str, width: usize) -> String {
    if text.width() <= width {
        return text.to_owned();
    }
    let mut cut = String::new();
    let mut left = width.saturating_sub(1);
    for char in text.chars() {
        let Some(rest) = left.checked_sub(char.width().unwrap_or(0)) else {
            break;
        };
        left = rest;
        cut.push(char);
    }
    cut.push('…');
    cut
}

/// Pieces of a line, each with its ink.
#[derive(Default)]
struct Cells {
    pieces: Vec<(String, Ink)>,
    width: usize,
}

impl Cells {
    fn put(&mut self, text: &str, ink: Ink) {
        if !text.is_empty() {
            self.width += text.width();
            self.pieces.push((text.to_owned(), ink));
        }
    }

    fn gap(&mut self, width: usize) {
        self.put(&" ".repeat(width), Ink::Plain);
    }

    fn gap_to(&mut self, column: usize) {
        self.gap(column.saturating_sub(self.width));
    }

    fn write(&self, text: &mut String, style: &Style) {
        for (piece, ink) in &self.pieces {
            paint(text, piece, *ink, style);
        }
        text.truncate(text.trim_end_matches(' ').len());
        text.push('\n');
    }
}

/// What a piece of text is, which decides its color.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ink {
    Plain,
    Dim,
    Strong,
    Good,
    Error,
    Service(u8),
}

/// Foreground colors that tell services apart; red and green have a meaning
/// already (ECMA-48, Select Graphic Rendition).
const SERVICE_COLORS: &[u8] = &[36, 35, 33, 34, 96, 95, 93, 94];

impl Ink {
    fn of_service(name: &str) -> Self {
        let mut hasher = DefaultHasher::new();
        name.hash(&mut hasher);
        let idx = usize::try_from(hasher.finish() % SERVICE_COLORS.len() as u64).unwrap_or(0);
        Self::Service(SERVICE_COLORS.get(idx).copied().unwrap_or(39))
    }
}

fn paint(text: &mut String, piece: &str, ink: Ink, style: &Style) {
    let code = match ink {
        Ink::Plain => None,
        _ if !style.color || piece.trim().is_empty() => None,
        Ink::Dim => Some(2),
        Ink::Strong => Some(1),
        Ink::Good => Some(32),
        Ink::Error => Some(31),
        Ink::Service(color) => Some(color),
    };
    // Writing to a string does not fail.
    let _ = match code {
        Some(code) => write!(text, "\u{1b}[{code}m{piece}\u{1b}[0m"),
        None => write!(text, "{piece}"),
    };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::assemble::Parent;
    use crate::attribute::Attributes;
    use crate::protocol::Exchange;
    use crate::resource::Resource;
    use std::sync::{Arc, Mutex};

    const START: u64 = 1_700_000_000_123_000_000;
    const PLAIN: Style = Style {
        width: 100,
        color: false,
    };

    fn span(
        service: &'static str,
        id: u8,
        parent: u8,
        role: Role,
        name: &'static str,
        time: (u64, u64),
    ) -> Span {
        Span {
            resource: Arc::new(Resource {
                attributes: vec![("service.name".into(), service.into())],
            }),
            trace_id: [0x4b; 16],
            span_id: [id; 8],
            parent: (parent > 0).then_some(Parent {
                span_id: [parent; 8],
                remote: role == Role::Server,
            }),
            flags: 1,
            trace_state: String::new(),
            role,
            start: START + time.0 * 1_000,
            end: START + time.1 * 1_000,
            exchange: Exchange {
                scope: "otel-ebpf.http".into(),
                route_key: None,
                name: name.into(),
                attributes: Vec::new(),
                status: Status::Unset,
            },
            events: Vec::new(),
        }
    }

    fn with(mut span: Span, attributes: Attributes) -> Span {
        span.exchange.attributes = attributes;
        span
    }

    fn failed(mut span: Span, message: &str) -> Span {
        span.exchange.status = Status::Error(message.to_owned());
        span
    }

    fn shop() -> Vec<Span> {
        use Role::{Client, Server};
        let status = |code: i64| ("http.response.status_code".into(), Value::Int(code));
        vec![
            failed(
                with(
                    span("payment", 3, 2, Server, "POST /v1/charges", (9_200, 31_700)),
                    vec![("url.path".into(), "/v1/charges".into()), status(500)],
                ),
                "CardError: the card was declined",
            ),
            failed(
                with(
                    span("shop", 2, 1, Client, "POST", (8_000, 33_000)),
                    vec![
                        ("url.full".into(), "http://payment:8443/v1/charges".into()),
                        status(500),
                    ],
                ),
                "",
            ),
            with(
                span("shop", 4, 1, Client, "SELECT orders", (1_100, 1_950)),
                vec![(
                    "db.query.text".into(),
                    "SELECT * FROM orders WHERE id = ?".into(),
                )],
            ),
            with(
                span("shop", 1, 0, Server, "POST /orders/{id}/pay", (0, 41_200)),
                vec![("url.path".into(), "/orders/42/pay".into()), status(402)],
            ),
        ]
    }

    #[track_caller]
    fn check(spans: &[Span], expected: &[&str]) {
        let text = render(spans, &PLAIN);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines, expected, "\n{text}");
    }

    #[test]
    fn a_trace_is_a_waterfall() {
        check(
            &shop(),
            &[
                "● trace 4b4b4b4b4b4b4b4b4b4b4b4b4b4b4b4b  22:13:20.123Z  41.2 ms  4 spans, 2 errors",
                "  shop     ← POST /orders/{id}/pay  /orders/42/pay           402  41.2 ms  ━━━━━━━━━━━━━━━━━━━━━━━━━",
                "  shop     ├─→ SELECT orders  SELECT * FROM orders WHERE…          850 µs  ╺",
                "  shop     └─→ POST  payment:8443/v1/charges               ✗ 500  25.0 ms       ━━━━━━━━━━━━━━━",
                "  payment    └─← POST /v1/charges                          ✗ 500  22.5 ms       ╺━━━━━━━━━━━━━",
                "                 CardError: the card was declined",
                "",
            ],
        );
    }

    #[test]
    fn a_query_is_told_by_its_system_text_and_rows() {
        let query = |rows: i64| {
            with(
                span("shop", 4, 1, Role::Client, "SELECT orders", (0, 1)),
                vec![
                    ("db.system.name".into(), "postgresql".into()),
                    ("db.query.text".into(), "SELECT *\nFROM orders".into()),
                    ("db.response.returned_rows".into(), rows.into()),
                ],
            )
        };
        let detail = label(&query(2), 1).detail;
        assert!(detail.starts_with("postgresql: SELECT *"), "{detail}");
        assert!(!detail.contains('\n'), "{detail}");
        assert_eq!(outcome(&query(2)), "2 rows");
        assert_eq!(outcome(&query(1)), "1 row");
        assert_eq!(outcome(&failed(query(0), "")), "✗ 0 rows");
    }

    #[test]
    fn no_line_is_wider_than_the_terminal() {
        for width in [MIN_WIDTH, 80, 100, MAX_WIDTH] {
            let style = Style {
                width,
                color: false,
            };
            let mut spans = shop();
            spans[0].exchange.name = "漢字かな".repeat(100).into();
            for line in render(&spans, &style).lines().skip(1) {
                assert!(line.width() <= width, "{width}: {line}");
                assert_eq!(line, line.trim_end());
            }
        }
    }

    #[test]
    fn colors_are_used_only_on_request() {
        let colored = Style {
            color: true,
            ..PLAIN
        };
        let text = render(&shop(), &colored);
        assert!(text.contains("\u{1b}[31m✗ 500\u{1b}[0m"), "{text:?}");
        assert!(!render(&shop(), &PLAIN).contains('\u{1b}'));
        let mut plain = String::new();
        for (idx, piece) in text.split('\u{1b}').enumerate() {
            let end = if idx == 0 {
                0
            } else {
                piece.find('m').unwrap() + 1
            };
            plain.push_str(&piece[end..]);
        }
        assert_eq!(plain, render(&shop(), &PLAIN));
    }

    #[test]
    fn the_environment_decides_on_width_and_color() {
        let style = |variables: &[(&str, &str)], is_terminal| {
            let lookup = |name: &str| {
                let found = variables.iter().find(|(known, _)| *known == name);
                found.map(|(_, value)| (*value).to_owned())
            };
            let style = Style::from(lookup, is_terminal);
            (style.width, style.color)
        };
        assert_eq!(style(&[], true), (100, true));
        assert_eq!(style(&[], false), (100, false));
        assert_eq!(style(&[("NO_COLOR", "1")], true), (100, false));
        assert_eq!(style(&[("NO_COLOR", "")], true), (100, true));
        assert_eq!(style(&[("TERM", "dumb")], true), (100, false));
        assert_eq!(style(&[("COLUMNS", "120")], true), (120, true));
        assert_eq!(style(&[("COLUMNS", "3")], true), (MIN_WIDTH, true));
        assert_eq!(
            style(&[("COLUMNS", "99999999999999999999")], true),
            (100, true)
        );
    }

    #[test]
    fn spans_without_their_parent_are_marked_and_circles_broken() {
        use Role::{Client, Server};
        check(
            &[
                span("a", 1, 9, Server, "GET /lost", (0, 10)),
                span("a", 2, 3, Client, "GET /two", (2, 8)),
                span("a", 3, 2, Client, "GET /three", (3, 9)),
                span("a", 4, 4, Client, "GET /self", (4, 5)),
            ],
            &[
                "● trace 4b4b4b4b4b4b4b4b4b4b4b4b4b4b4b4b  22:13:20.123Z  10.0 µs  4 spans",
                "  a  ⋯ ← GET /lost                                                10.0 µs  ━━━━━━━━━━━━━━━━━━━━━━━━━",
                "  a  ⋯ → GET /self                                                1.00 µs            ━━╸",
                "  a  ⋯ → GET /two                                                 6.00 µs       ━━━━━━━━━━━━━━━",
                "  a  └─→ GET /three                                               6.00 µs         ╺━━━━━━━━━━━━━━╸",
                "",
            ],
        );
    }

    #[test]
    fn text_from_outside_cannot_steer_the_terminal() {
        let mut spans = shop();
        let evil = "a\u{1b}]0;owned\u{7}\u{9b}31m\r\nb\u{202e}c\u{200b}";
        for span in &mut spans {
            span.exchange.name = evil.into();
            span.exchange.attributes = vec![
                ("url.path".into(), evil.into()),
                ("error.type".into(), evil.into()),
            ];
            span.exchange.status = Status::Error(evil.to_owned());
            span.resource = Arc::new(Resource {
                attributes: vec![("service.name".into(), evil.into())],
            });
        }
        let text = render(&spans, &PLAIN);
        let bad = text.chars().find(|char| {
            (char.is_control() && *char != '\n') || matches!(char, '\u{202e}' | '\u{200b}')
        });
        assert_eq!(bad, None);
        // The trace's line, a line and a message per span, and the empty one.
        assert_eq!(text.lines().count(), 1 + 4 * 2 + 1, "{text}");
        assert!(text.contains("a�]0;owned��31m  b�c�"), "{text}");
    }

    #[test]
    fn of_a_long_trace_the_first_spans_are_shown() {
        let mut spans: Vec<_> = (0..3_000)
            .map(|idx| {
                let mut span = span("a", 0, 0, Role::Client, "GET /", (idx, idx + 1));
                span.span_id = idx.to_be_bytes();
                span.parent = (idx > 0).then(|| Parent {
                    // A chain, as deep as it is long.
                    span_id: (idx - 1).to_be_bytes(),
                    remote: false,
                });
                span
            })
            .collect();
        spans[2_000] = failed(spans[2_000].clone(), "late");
        let text = render(&spans, &PLAIN);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 1 + MAX_LINES + 2);
        assert_eq!(lines[MAX_LINES + 1], "  … 2900 more spans, 1 error");
        assert!(lines.iter().all(|line| line.width() <= 100));
    }

    #[test]
    fn odd_times_do_not_break_the_bars() {
        let mut backwards = span("a", 1, 0, Role::Server, "GET /", (50, 20));
        let text = render(std::slice::from_ref(&backwards), &PLAIN);
        assert!(text.contains("0 ns"), "{text}");
        backwards.start = 0;
        backwards.end = u64::MAX;
        let other = span("a", 2, 1, Role::Client, "GET /", (0, 1));
        assert_eq!(render(&[backwards, other], &PLAIN).lines().count(), 4);
        assert_eq!(render(&[], &PLAIN), "");
    }

    #[test]
    fn durations_have_three_digits() {
        let check = |nanos, expected| assert_eq!(duration(nanos), expected);
        check(0, "0 ns");
        check(999, "999 ns");
        check(1_000, "1.00 µs");
        check(99_960, "100 µs");
        check(999_499, "999 µs");
        check(999_500, "1.00 ms");
        check(41_249_000, "41.2 ms");
        check(1_234_000_000, "1.23 s");
        check(59_999_000_000, "60.0 s");
        check(125_000_000_000, "2m 05s");
    }

    #[derive(Clone, Default)]
    struct Output(Arc<Mutex<Vec<u8>>>);

    impl Write for Output {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    impl Output {
        fn traces(&self) -> usize {
            let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
            text.matches("● trace").count()
        }
    }

    /// After how many milliseconds a trace with these spans is shown.
    async fn shown_after(spans: Vec<Span>) -> u64 {
        let output = Output::default();
        let mut console = Console::new(output.clone(), PLAIN);
        console.export(spans).await.unwrap();
        let start = Instant::now();
        while output.traces() == 0 {
            tokio::time::sleep(Duration::from_millis(50)).await;
            console.export(Vec::new()).await.unwrap();
        }
        u64::try_from(start.elapsed().as_millis()).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_trace_is_shown_when_it_seems_whole() {
        let root = span("a", 1, 0, Role::Server, "GET /", (0, 9));
        let called = span("a", 1, 8, Role::Server, "GET /", (0, 9));
        let child = span("a", 2, 1, Role::Client, "GET /", (1, 2));
        assert_eq!(shown_after(vec![child.clone(), root]).await, 100);
        assert_eq!(shown_after(vec![child.clone(), called]).await, 1_000);
        assert_eq!(shown_after(vec![child]).await, 5_000);
    }

    #[tokio::test(start_paused = true)]
    async fn a_trace_that_goes_on_is_shown_in_the_end() {
        let output = Output::default();
        let mut console = Console::new(output.clone(), PLAIN);
        let start = Instant::now();
        while output.traces() == 0 {
            let child = span("a", 2, 1, Role::Client, "GET /", (1, 2));
            console.export(vec![child]).await.unwrap();
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        assert_eq!(start.elapsed(), MAX_AGE + Duration::from_secs(1));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_held_is_bounded_and_shown_at_the_end() {
        let output = Output::default();
        let mut console = Console::new(output.clone(), PLAIN);
        for idx in 0..1_000_u64 {
            let mut span = span("a", 2, 1, Role::Client, "GET /", (1, 2));
            span.trace_id[..8].copy_from_slice(&idx.to_be_bytes());
            console.export(vec![span]).await.unwrap();
        }
        assert_eq!(
            (console.held.len(), output.traces()),
            (MAX_TRACES, 1_000 - MAX_TRACES)
        );
        console.finish().await.unwrap();
        assert_eq!((console.held_spans, output.traces()), (0, 1_000));
        let many = vec![span("a", 2, 1, Role::Client, "GET /", (1, 2)); 20_000];
        console.export(many).await.unwrap();
        assert!(console.held_spans <= MAX_SPANS);
    }
}
