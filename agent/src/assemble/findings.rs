//! Puts what the interpreter told of an exchange into its span.

use crate::assemble::{SpanEvent, UnixTime};
use crate::attribute::{Attributes, Value};
use crate::insight::{Exception, Insight};
use crate::instrumentations::Libraries;
use crate::protocol::{Exchange, Role, Status};

/// What is known so far of an exchange under way.
#[derive(Debug, Default)]
pub(super) struct Findings {
    latest: Option<Insight>,
    /// An exception that was seen, and when.
    exception: Option<(u64, Box<Exception>)>,
}

impl Findings {
    /// Adds an insight. What it does not tell stays as it was.
    pub(super) fn add(&mut self, mut insight: Insight) {
        if let Some(exception) = insight.exception.take() {
            self.exception = Some((insight.at, exception));
        }
        match &mut self.latest {
            None => self.latest = Some(insight),
            Some(known) => {
                known.framework = insight.framework.or(known.framework);
                if insight.route.is_some() {
                    known.route = insight.route;
                }
                if insight.code.is_some() {
                    known.code = insight.code;
                }
                known.libraries = insight.libraries.or(known.libraries);
                if insight.statement.is_some() {
                    known.statement = insight.statement;
                }
            }
        }
    }

    /// The libraries whose frames made a call, if that is known.
    pub(super) fn libraries(&self) -> Option<Libraries> {
        self.latest.as_ref()?.libraries
    }

    /// Completes an exchange that has ended, at this monotonic time; the events
    /// of its span, and whether its statement is another than was told.
    ///
    /// An exception counts only where the answer says that something went
    /// wrong: one that the application turned into a proper answer was
    /// handled.
    pub(super) fn complete(
        self,
        exchange: &mut Exchange,
        role: Role,
        ended: u64,
        clock: &dyn UnixTime,
    ) -> (Vec<SpanEvent>, bool) {
        let disagreed = match self.latest {
            Some(insight) => !describe(insight, exchange),
            None => false,
        };
        let failed = role == Role::Server && matches!(exchange.status, Status::Error(_));
        let Some((at, exception)) = self.exception.filter(|_| failed) else {
            return (Vec::new(), disagreed);
        };
        if let Status::Error(description) = &mut exchange.status
            && description.is_empty()
        {
            *description = summary(&exception);
        }
        // A stack is walked when its transfer is over and has its time.
        let event = event(*exception, clock.unix(at.min(ended)));
        (vec![event], disagreed)
    }
}

/// Adds route, code location and statement; false if the statement is of
/// something else.
fn describe(insight: Insight, exchange: &mut Exchange) -> bool {
    let Insight {
        subject: _,
        at: _,
        framework,
        route,
        code,
        serving: _,
        libraries: _,
        statement,
        exception: _,
    } = insight;
    if let Some(key) = exchange.route_key {
        if let Some(framework) = framework {
            exchange.scope = format!("otel-ebpf.{framework}").into();
        }
        if let Some(route) = route {
            exchange.name = format!("{} {route}", exchange.name).into();
            exchange
                .attributes
                .push((key.into(), Value::from(route.to_string())));
        }
    }
    if let Some(code) = code {
        let attributes = &mut exchange.attributes;
        put(attributes, "code.function.name", code.function.clone());
        put(attributes, "code.file.path", code.path.clone());
        put(attributes, "code.line.number", i64::from(code.line));
    }
    statement.is_none_or(|statement| exchange.restate(&statement))
}

fn put(attributes: &mut Attributes, key: &'static str, value: impl Into<Value>) {
    attributes.push((key.into(), value.into()));
}

/// The last line of the stack trace: type and message.
fn summary(exception: &Exception) -> String {
    match exception.message.as_deref() {
        None | Some("") => exception.type_name.clone(),
        Some(message) => format!("{}: {message}", exception.type_name),
    }
}

/// The event `exception` (semantic conventions, exceptions on spans).
fn event(exception: Exception, at: u64) -> SpanEvent {
    let Exception {
        type_name,
        message,
        stacktrace,
    } = exception;
    let mut attributes = Attributes::new();
    put(&mut attributes, "exception.type", type_name);
    if let Some(message) = message {
        put(&mut attributes, "exception.message", message);
    }
    put(&mut attributes, "exception.stacktrace", stacktrace);
    SpanEvent {
        name: "exception",
        at,
        attributes,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::insight::{CodeLocation, Subject};

    struct Ahead;

    impl UnixTime for Ahead {
        fn unix(&self, monotonic: u64) -> u64 {
            monotonic + 1000
        }
    }

    fn insight() -> Insight {
        Insight {
            subject: Subject::Answering(1),
            at: 7,
            framework: None,
            route: None,
            code: None,
            serving: None,
            libraries: None,
            statement: None,
            exception: None,
        }
    }

    fn routed() -> Insight {
        Insight {
            framework: Some("flask"),
            route: Some("/users/<int:uid>".into()),
            code: Some(Arc::new(CodeLocation {
                function: "shop.views.user".to_owned(),
                path: "/srv/shop/views.py".to_owned(),
                line: 12,
            })),
            ..insight()
        }
    }

    fn raised() -> Insight {
        Insight {
            exception: Some(Box::new(Exception {
                type_name: "ValueError".to_owned(),
                message: Some("kaboom".to_owned()),
                stacktrace: "Traceback ...\nValueError: kaboom\n".to_owned(),
            })),
            ..insight()
        }
    }

    fn exchange(status: Status) -> Exchange {
        Exchange {
            scope: "otel-ebpf.http".into(),
            name: "GET".into(),
            attributes: Vec::new(),
            route_key: Some("http.route"),
            status,
        }
    }

    fn complete(insights: Vec<Insight>, status: Status) -> (Exchange, Vec<SpanEvent>) {
        let mut findings = Findings::default();
        for insight in insights {
            findings.add(insight);
        }
        let mut exchange = exchange(status);
        let (events, _) = findings.complete(&mut exchange, Role::Server, 5, &Ahead);
        (exchange, events)
    }

    #[test]
    fn the_route_follows_the_name() {
        let (exchange, events) = complete(vec![routed()], Status::Unset);
        assert_eq!(exchange.name, "GET /users/<int:uid>");
        assert_eq!(exchange.scope, "otel-ebpf.flask");
        assert_eq!(
            exchange.attributes,
            [
                ("http.route".into(), "/users/<int:uid>".into()),
                ("code.function.name".into(), "shop.views.user".into()),
                ("code.file.path".into(), "/srv/shop/views.py".into()),
                ("code.line.number".into(), 12.into()),
            ]
        );
        assert_eq!(events, []);
    }

    #[test]
    fn what_is_not_told_again_stays() {
        let (exchange, _) = complete(vec![routed(), insight()], Status::Unset);
        assert_eq!(exchange.name, "GET /users/<int:uid>");
        assert_eq!(exchange.attributes.len(), 4);
    }

    #[test]
    fn an_exchange_without_routes_keeps_its_name() {
        let mut findings = Findings::default();
        findings.add(routed());
        let mut exchange = exchange(Status::Unset);
        exchange.route_key = None;
        findings.complete(&mut exchange, Role::Client, 5, &Ahead);
        assert_eq!(exchange.name, "GET");
        assert_eq!(exchange.scope, "otel-ebpf.http");
        assert_eq!(exchange.attributes.len(), 3);
    }

    #[test]
    fn an_exception_of_a_failed_request_is_an_event() {
        let error = Status::Error(String::new());
        let (exchange, events) = complete(vec![raised(), routed()], error);
        assert_eq!(exchange.status, Status::Error("ValueError: kaboom".into()));
        let event = &events[0];
        assert_eq!((event.name, event.at), ("exception", 1005));
        assert_eq!(
            event.attributes[..2],
            [
                ("exception.type".into(), "ValueError".into()),
                ("exception.message".into(), "kaboom".into()),
            ]
        );
    }

    #[test]
    fn a_handled_exception_leaves_no_mark() {
        let (exchange, events) = complete(vec![raised()], Status::Unset);
        assert_eq!(exchange.status, Status::Unset);
        assert_eq!(events, []);
    }
}
