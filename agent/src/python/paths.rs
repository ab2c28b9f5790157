//! Routes that only the path tells: of frameworks of which nothing is left
//! when a WSGI server writes, the patterns are read from the application and
//! compared with the path. Where that leaves any doubt, no route is told.

use std::collections::HashMap;
use std::sync::Arc;

use pyframes::{Memory, attribute};

use super::objects::Objects;
use super::tree::member;
use super::views::{self, View};

/// How long patterns are remembered, nanoseconds.
const REMEMBERED: u64 = 5_000_000_000;
/// Most applications whose patterns are remembered.
const MAX_APPLICATIONS: usize = 64;
/// Most patterns of an application.
const MAX_PATTERNS: usize = 20_000;
/// Most objects that are looked at between a server and its application.
const MAX_WRAPPERS: usize = 64;
/// Deepest tree of routes.
const MAX_DEPTH: u32 = 64;

/// Names under which what wraps an application keeps it.
const WRAPPERS: &[&str] = &["app", "application", "wsgi_app", "_app", "wrapped_app"];

/// Frameworks whose routes are found so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Style {
    /// Falcon's router: what is literal comes first.
    Falcon,
    /// Pyramid's routes: the first that matches, if its predicates agree.
    Pyramid,
}

/// What a segment of a path may be.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Segment {
    Literal(String),
    Any,
    Digits,
    Rest,
    Unknown,
}

/// A route of an application.
#[derive(Clone, Debug)]
struct Pattern {
    text: Arc<str>,
    segments: Vec<Segment>,
    /// Whether more than the path decides.
    conditional: bool,
    /// Responders by method, a dictionary.
    responders: Option<u64>,
    /// Views, where the framework has no responders.
    views: Vec<View>,
}

/// A route that was found.
#[derive(Clone, Debug, Default)]
pub(super) struct Found {
    /// Its pattern.
    pub(super) route: Option<Arc<str>>,
    /// What serves it.
    pub(super) handler: Option<u64>,
}

/// The patterns of the applications of one process.
#[derive(Debug, Default)]
pub(super) struct Paths {
    known: HashMap<(u64, Style), Remembered>,
}

/// Patterns, and when they were read.
type Remembered = (u64, Arc<Vec<Pattern>>);

impl Paths {
    /// The route of a path, as the server's environment has it.
    pub(super) fn find<M: Memory>(
        &mut self,
        objects: Objects<'_, M>,
        (application, style): (u64, Style),
        (method, path): (Option<&str>, &str),
        now: u64,
    ) -> Found {
        let known = self.known.get(&(application, style));
        let patterns = match known {
            Some((then, patterns)) if now.saturating_sub(*then) < REMEMBERED => {
                Arc::clone(patterns)
            }
            _ => {
                let patterns = patterns(objects, application, style).unwrap_or_default();
                let patterns = Arc::new(patterns);
                if self.known.len() >= MAX_APPLICATIONS {
                    self.known.clear();
                }
                let entry = (now, Arc::clone(&patterns));
                self.known.insert((application, style), entry);
                patterns
            }
        };
        let path = decoded(path);
        let Some(pattern) = choose(&patterns, &path, style) else {
            return Found::default();
        };
        let handler = pattern
            .responders
            .zip(method)
            .and_then(|(responders, method)| objects.item(responders, method).ok().flatten())
            .or_else(|| views::serving(&pattern.views, method?));
        Found {
            route: Some(Arc::clone(&pattern.text)),
            handler,
        }
    }
}

/// WSGI has the bytes of a path as characters.
fn decoded(path: &str) -> String {
    let bytes: Option<Vec<u8>> = path
        .chars()
        .map(|c| u8::try_from(u32::from(c)).ok())
        .collect();
    bytes
        .and_then(|bytes| String::from_utf8(bytes).ok())
        .unwrap_or_else(|| path.to_owned())
}

/// The pattern that the framework has chosen, if there is no doubt.
fn choose<'p>(patterns: &'p [Pattern], path: &str, style: Style) -> Option<&'p Pattern> {
    let segments: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    let mut best: Option<&Pattern> = None;
    for pattern in patterns {
        match (matches(&pattern.segments, &segments), style) {
            (Some(false), _) => {}
            (Some(true), Style::Pyramid) => return (!pattern.conditional).then_some(pattern),
            (None, Style::Pyramid) => return None,
            (None, Style::Falcon) => {
                // A literal route goes before whatever this is.
                let literal = patterns.iter().find(|other| {
                    let all = other.segments.iter().zip(&segments);
                    other.segments.len() == segments.len()
                        && all
                            .into_iter()
                            .all(|(segment, text)| is_literally(segment, text))
                });
                return literal;
            }
            (Some(true), Style::Falcon) => {
                let better = best.is_none_or(|best| {
                    let pairs = pattern.segments.iter().zip(&best.segments);
                    let differing = pairs.into_iter().find(|(a, b)| a != b);
                    matches!(differing, Some((Segment::Literal(_), _)))
                });
                if better {
                    best = Some(pattern);
                }
            }
        }
    }
    best
}

fn is_literally(segment: &Segment, text: &str) -> bool {
    matches!(segment, Segment::Literal(literal) if literal == text)
}

/// Whether a path matches; `None` if that cannot be told.
fn matches(pattern: &[Segment], path: &[&str]) -> Option<bool> {
    let mut sure = true;
    let mut path = path.iter();
    for segment in pattern {
        if *segment == Segment::Rest {
            return sure.then_some(true);
        }
        let Some(text) = path.next() else {
            return Some(false);
        };
        let fits = match segment {
            Segment::Literal(_) => is_literally(segment, text),
            Segment::Any => !text.is_empty(),
            Segment::Digits => !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()),
            Segment::Rest => true,
            Segment::Unknown => {
                sure = false;
                true
            }
        };
        if !fits {
            return Some(false);
        }
    }
    match path.next() {
        Some(_) => Some(false),
        None => sure.then_some(true),
    }
}

/// The segments of a pattern as both frameworks write them.
fn segments(pattern: &str) -> Vec<Segment> {
    let mut found = Vec::new();
    let mut rest = pattern.trim_start_matches('/');
    loop {
        // A slash may be part of an expression in braces.
        let mut depth = 0_u32;
        let end = rest.find(|c| {
            match c {
                '{' => depth += 1,
                '}' => depth = depth.saturating_sub(1),
                _ => {}
            }
            c == '/' && depth == 0
        });
        let (segment, more) = match end {
            Some(end) => (rest.get(..end), rest.get(end + 1..)),
            None => (Some(rest), None),
        };
        let segment = segment.unwrap_or_default();
        match segment.split_once('*') {
            Some(("", _)) => found.push(Segment::Rest),
            Some(_) => found.push(Segment::Unknown),
            None => found.push(one(segment)),
        }
        match more {
            Some(more) => rest = more,
            None => return found,
        }
    }
}

fn one(segment: &str) -> Segment {
    if !segment.contains(['{', '}']) {
        return Segment::Literal(segment.to_owned());
    }
    let inner = segment
        .strip_prefix('{')
        .and_then(|segment| segment.strip_suffix('}'));
    match inner.map(|inner| inner.split_once(':').unwrap_or((inner, ""))) {
        Some((name, _)) if name.contains(['{', '}']) => Segment::Unknown,
        Some((_, "")) => Segment::Any,
        Some((_, "[^/]+")) => Segment::Any,
        Some((_, "int" | r"\d+" | "[0-9]+")) => Segment::Digits,
        Some((_, "path" | ".*")) => Segment::Rest,
        _ => Segment::Unknown,
    }
}

/// The patterns of an application, in the order in which they are tried.
fn patterns<M: Memory>(
    objects: Objects<'_, M>,
    application: u64,
    style: Style,
) -> Option<Vec<Pattern>> {
    let class = match style {
        Style::Falcon => "falcon.app.App",
        Style::Pyramid => "pyramid.router.Router",
    };
    let application = unwrapped(objects, application, class)?;
    let mut found = Vec::new();
    match style {
        Style::Falcon => {
            let router = attribute_of(objects, application, "_router")?;
            let roots = objects
                .list(attribute_of(objects, router, "_roots")?)
                .ok()?;
            for root in roots {
                nodes(objects, root, MAX_DEPTH, &mut found);
            }
        }
        Style::Pyramid => {
            let mapper = member(objects, application, "routes_mapper")?;
            let routes = objects.list(member(objects, mapper, "routelist")?).ok()?;
            let mut views = views::of_router(objects, application);
            for route in routes.into_iter().take(MAX_PATTERNS) {
                let text = objects.name(member(objects, route, "pattern")?).ok()?;
                let predicates = member(objects, route, "predicates")?;
                let none = |list: Vec<u64>| list.is_empty();
                let name = member(objects, route, "name").and_then(|name| objects.name(name).ok());
                let unconditional = objects.tuple(predicates).is_ok_and(none)
                    || objects.list(predicates).is_ok_and(none);
                found.push(Pattern {
                    segments: segments(&text),
                    text: text.into(),
                    conditional: !unconditional,
                    responders: None,
                    views: name
                        .and_then(|name| views.remove(&name))
                        .unwrap_or_default(),
                });
            }
        }
    }
    Some(found)
}

/// The routes of a node of Falcon's tree and of those below it.
fn nodes<M: Memory>(objects: Objects<'_, M>, node: u64, depth: u32, into: &mut Vec<Pattern>) {
    if depth == 0 || into.len() > MAX_PATTERNS {
        return;
    }
    let template = member(objects, node, "uri_template");
    if let Some(text) = template.and_then(|template| objects.name(template).ok()) {
        into.push(Pattern {
            segments: segments(&text),
            text: text.into(),
            conditional: false,
            responders: member(objects, node, "method_map"),
            views: Vec::new(),
        });
    }
    let children = member(objects, node, "children");
    for child in children
        .and_then(|children| objects.list(children).ok())
        .unwrap_or_default()
    {
        nodes(objects, child, depth - 1, into);
    }
}

/// The application of a class behind what wraps it.
fn unwrapped<M: Memory>(objects: Objects<'_, M>, outer: u64, class: &str) -> Option<u64> {
    let layout = objects.layout;
    let mut waiting = vec![outer];
    for idx in 0..MAX_WRAPPERS {
        let at = *waiting.get(idx)?;
        let kind = objects.type_name(at).unwrap_or_default();
        match kind.as_str() {
            "method" => waiting.extend(objects.field(at, layout.method.im_self)),
            "function" => {
                let cells = objects.tuple_in(at, layout.function.func_closure);
                let contents = cells
                    .into_iter()
                    .filter_map(|cell| objects.field(cell, layout.cell.ob_ref).ok());
                waiting.extend(contents);
            }
            _ => {
                if objects.is_instance(at, class) {
                    return Some(at);
                }
                let inner = WRAPPERS.iter().filter_map(|name| member(objects, at, name));
                waiting.extend(inner);
            }
        }
    }
    None
}

fn attribute_of<M: Memory>(objects: Objects<'_, M>, object: u64, name: &str) -> Option<u64> {
    let Objects { memory, layout } = objects;
    attribute::attribute(memory, layout, object, name)
        .ok()
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(patterns: &[(&str, bool)], path: &str, style: Style) -> Option<String> {
        let patterns: Vec<_> = patterns
            .iter()
            .map(|&(text, conditional)| Pattern {
                text: text.into(),
                segments: segments(text),
                conditional,
                responders: None,
                views: Vec::new(),
            })
            .collect();
        choose(&patterns, path, style).map(|pattern| pattern.text.to_string())
    }

    #[test]
    fn what_is_literal_comes_first_in_falcon() {
        let routes = [
            ("/users/{id}", false),
            ("/users/me", false),
            ("/users/{id:int}/orders", false),
            ("/files/{name:path}", false),
            ("/at/{day:dt}", false),
        ];
        let check = |path, expected: Option<&str>| {
            assert_eq!(chosen(&routes, path, Style::Falcon).as_deref(), expected);
        };
        check("/users/me", Some("/users/me"));
        check("/users/7", Some("/users/{id}"));
        check("/users/7/orders", Some("/users/{id:int}/orders"));
        check("/users/x/orders", None);
        check("/files/a/b", Some("/files/{name:path}"));
        check("/at/today", None);
        check("/nowhere", None);
    }

    #[test]
    fn the_first_that_matches_counts_in_pyramid() {
        let routes = [
            (r"/users/{id:\d+}", false),
            ("/users/{name}", false),
            ("shop/{item}", true),
            ("/odd/{x:[a-f]+}", false),
            ("/odd/{x}", false),
            ("/rest/*all", false),
        ];
        let check = |path, expected: Option<&str>| {
            assert_eq!(chosen(&routes, path, Style::Pyramid).as_deref(), expected);
        };
        check("/users/7", Some(r"/users/{id:\d+}"));
        check("/users/x", Some("/users/{name}"));
        check("/shop/x", None);
        check("/odd/a", None);
        check("/rest/a/b/c", Some("/rest/*all"));
    }
}
