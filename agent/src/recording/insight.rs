//! Insights as JSON.

use std::sync::Arc;

use abi::record::Owner;
use serde_json::{Value as Json, json};

use super::number;
use crate::insight::{CodeLocation, Exception, Insight, Subject};
use crate::stream::Evidence;

/// Frameworks whose names can be read again: an [`Insight`] has them as
/// constants.
fn framework(name: &str) -> Option<&'static str> {
    crate::insight::FRAMEWORKS
        .iter()
        .find(|known| **known == name)
        .copied()
}

pub(super) fn write(insight: &Insight) -> Json {
    let Insight {
        subject,
        at,
        framework,
        route,
        code,
        serving,
        libraries,
        statement,
        exception,
    } = insight;
    let subject = match subject {
        Subject::Answering(conn) => json!({ "answering": conn }),
        Subject::Sending(conn) => json!({ "sending": conn }),
        Subject::Owned(Evidence { owner, rule }) => {
            json!({ "owner": owner.conn, "offset": owner.offset, "rule": rule })
        }
    };
    json!({
        "subject": subject,
        "at": at,
        "framework": framework,
        "route": route.as_deref(),
        "serving": serving.map(|owner| json!([owner.conn, owner.offset])),
        "libraries": libraries.map(|found| found.modules().collect::<Vec<_>>()),
        "statement": statement.as_deref(),
        "code": code.as_ref().map(|code| json!([code.function, code.path, code.line])),
        "exception": exception.as_ref().map(|exception| {
            json!([exception.type_name, exception.message, exception.stacktrace])
        }),
    })
}

pub(super) fn read(json: &Json) -> Option<Insight> {
    Some(Insight {
        subject: subject(json.get("subject")?)?,
        at: number(json, "at")?,
        framework: json.get("framework")?.as_str().and_then(framework),
        route: json.get("route")?.as_str().map(Arc::from),
        code: match json.get("code")? {
            Json::Null => None,
            code => Some(Arc::new(CodeLocation {
                function: text(code, 0)?,
                path: text(code, 1)?,
                line: u32::try_from(code.get(2)?.as_u64()?).ok()?,
            })),
        },
        // Recordings of earlier releases have none.
        serving: json.get("serving").and_then(owner),
        libraries: json.get("libraries").and_then(super::libraries),
        statement: json.get("statement").and_then(Json::as_str).map(Arc::from),
        exception: match json.get("exception")? {
            Json::Null => None,
            exception => Some(Box::new(Exception {
                type_name: text(exception, 0)?,
                message: text(exception, 1),
                stacktrace: text(exception, 2)?,
            })),
        },
    })
}

fn owner(json: &Json) -> Option<Owner> {
    Some(Owner {
        conn: json.get(0)?.as_u64()?,
        offset: json.get(1)?.as_u64()?,
    })
}

fn subject(json: &Json) -> Option<Subject> {
    if let Some(conn) = number(json, "answering") {
        return Some(Subject::Answering(conn));
    }
    if let Some(conn) = number(json, "sending") {
        return Some(Subject::Sending(conn));
    }
    Some(Subject::Owned(Evidence {
        owner: Owner {
            conn: number(json, "owner")?,
            offset: number(json, "offset")?,
        },
        rule: number(json, "rule")?,
    }))
}

fn text(json: &Json, idx: usize) -> Option<String> {
    json.get(idx)?.as_str().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::instrumentations::Libraries;

    #[test]
    fn reads_what_it_wrote() {
        let evidence = Evidence {
            owner: Owner {
                conn: u64::MAX,
                offset: 7,
            },
            rule: 2,
        };
        let full = Insight {
            subject: Subject::Owned(evidence),
            at: 5,
            framework: Some("flask"),
            route: Some("/a/<b>".into()),
            code: Some(Arc::new(CodeLocation {
                function: "a.b".to_owned(),
                path: "/a.py".to_owned(),
                line: 9,
            })),
            serving: Some(Owner {
                conn: 3,
                offset: u64::MAX,
            }),
            libraries: Some(Libraries::having("redis.client.Redis.get")),
            statement: Some("select %s".into()),
            exception: Some(Box::new(Exception {
                type_name: "a.B".to_owned(),
                message: None,
                stacktrace: "Traceback".to_owned(),
            })),
        };
        let bare = |subject| Insight {
            subject,
            at: 0,
            framework: None,
            route: None,
            code: None,
            serving: None,
            libraries: None,
            statement: None,
            exception: None,
        };
        for insight in [
            full,
            bare(Subject::Answering(3)),
            bare(Subject::Sending(1 << 63)),
        ] {
            assert_eq!(read(&write(&insight)), Some(insight));
        }
        assert_eq!(read(&json!({})), None);
    }
}
