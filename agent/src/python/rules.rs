//! Routes of Tornado: the rule that leads to a handler's class, where there
//! is but one.

use std::sync::Arc;

use pyframes::Memory;

use super::objects::Objects;
use super::tree::member;

/// Deepest nesting of routers.
const MAX_DEPTH: u32 = 8;
/// Most rules of a router.
const MAX_RULES: usize = 20_000;

/// The pattern of the only rule of an application that leads to a class.
pub(super) fn pattern<M: Memory>(
    objects: Objects<'_, M>,
    application: u64,
    class: u64,
) -> Option<Arc<str>> {
    let mut found = Vec::new();
    for router in ["default_router", "wildcard_router"] {
        let router = member(objects, application, router)?;
        rules(objects, router, class, MAX_DEPTH, &mut found);
    }
    found.sort_unstable();
    found.dedup();
    let [only] = found[..] else {
        return None;
    };
    // `PatternObject` is `groups`, `groupindex`, `indexgroup` and `pattern`
    // behind a header of variable size (_sre/sre.h, 3.8 to 3.14).
    let regex = member(objects, member(objects, only, "matcher")?, "regex")?;
    let offset = objects.layout.object.size + 8 + 24;
    let pattern = objects.name(objects.field(regex, offset).ok()?).ok()?;
    let pattern = pattern.strip_suffix('$').unwrap_or(&pattern);
    Some(pattern.into())
}

fn rules<M: Memory>(
    objects: Objects<'_, M>,
    router: u64,
    class: u64,
    depth: u32,
    into: &mut Vec<u64>,
) {
    let rules_of_router = member(objects, router, "rules")
        .and_then(|rules| objects.list(rules).ok())
        .unwrap_or_default();
    if depth == 0 || into.len() + rules_of_router.len() > MAX_RULES {
        return;
    }
    for rule in rules_of_router {
        match member(objects, rule, "target") {
            Some(target) if target == class => into.push(rule),
            Some(target) if !objects.is_type(target) => {
                rules(objects, target, class, depth - 1, into);
            }
            _ => {}
        }
    }
}
