//! From the values of a stack to what they say of an exchange.

use std::sync::Arc;

use abi::record::{moment, part, value};
use pyframes::{Memory, attribute};

use super::exception::Teller;
use super::frameworks::{FRAMEWORKS, Role, Want};
use super::objects::Objects;
use super::values::{self, Item, Text};
use super::{PythonStats, StackEvent, State};
use crate::insight::{Insight, Subject};
use crate::stream::Evidence;

/// Deepest nesting of mounted applications.
const MAX_MOUNTS: u32 = 8;
/// Most routes of an application that are looked through.
const MAX_ROUTES: usize = 4096;

/// Exceptions that end what is under way without being failures.
const ENDINGS: &[&str] = &[
    "asyncio.exceptions.CancelledError",
    "GeneratorExit",
    "KeyboardInterrupt",
    "SystemExit",
];

/// The values of a stack by their roles, innermost first.
struct Told<'a> {
    items: Vec<(Role, usize, Item<'a>)>,
    /// Framework, and index among all values.
    exception: Option<(usize, usize)>,
}

/// What the stack of a process tells.
pub(super) fn insight(
    state: &mut State,
    wants: &[(usize, &'static Want)],
    stats: &PythonStats,
    event: &StackEvent<'_>,
) -> Option<Insight> {
    let stack = &event.stack;
    let objects = Objects {
        memory: &state.process,
        layout: &state.layout,
    };
    if stack.moment == moment::REQUEST {
        let code = state.names.caller(objects, values::frames(event.frames))?;
        return Some(Insight {
            subject: Subject::Sending(stack.conn),
            at: stack.at,
            framework: None,
            route: None,
            code: Some(code),
            exception: None,
        });
    }
    let items = values::items(event.values);
    let told = Told::new(&items, wants, stats);
    let route = told.route(objects, stats);
    let method = told.text(Role::Method).map(Text::into_string);
    let handler = told.object(Role::Handler).or_else(|| {
        let name = told.text(Role::ViewName)?;
        let application = told.object(Role::Application)?;
        state.handlers.named(objects, application, name.as_str())
    });
    let code = handler.and_then(|handler| {
        let location =
            state
                .handlers
                .location(objects, &mut state.names, handler, method.as_deref());
        if location.is_none() {
            stats.without_code.one();
        }
        location
    });
    let exception = told.exception.and_then(|(framework, idx)| {
        let class = items.get(idx)?.value.type_address;
        if handled(objects, class, framework) {
            return None;
        }
        let mut teller = Teller {
            objects,
            names: &mut state.names,
            sources: &mut state.sources,
            minor: state.minor,
        };
        let exception = teller.exception(items.get(idx..)?);
        if exception.is_none() {
            stats.exceptions_lost.one();
        }
        exception.map(Box::new)
    });
    if route.is_none() && code.is_none() && exception.is_none() {
        return None;
    }
    Some(Insight {
        subject: match stack.moment {
            moment::RESPONSE => Subject::Answering(stack.conn),
            _ => Subject::Owned(Evidence {
                owner: stack.owner,
                rule: stack.rule,
            }),
        },
        at: stack.at,
        framework: told.framework(),
        route,
        code,
        exception,
    })
}

impl<'a> Told<'a> {
    fn new(all: &'a [Item<'a>], wants: &[(usize, &'static Want)], stats: &PythonStats) -> Self {
        let mut items = Vec::new();
        let mut exception = None;
        for (idx, item) in all.iter().enumerate() {
            if item.value.part != part::ITSELF {
                continue;
            }
            match item.value.kind {
                value::NONE => continue,
                value::FAILED => {
                    stats.unreached.one();
                    continue;
                }
                _ => {}
            }
            let want = (item.value.recipe as usize)
                .checked_sub(1)
                .and_then(|idx| wants.get(idx));
            let Some((framework, want)) = want else {
                continue;
            };
            if want.role == Role::Exception && exception.is_none() {
                exception = (item.value.kind == value::EXCEPTION).then_some((*framework, idx));
            }
            items.push((want.role, *framework, *item));
        }
        Self { items, exception }
    }

    fn of(&self, role: Role) -> impl DoubleEndedIterator<Item = &Item<'a>> {
        self.items
            .iter()
            .filter(move |(its, _, _)| *its == role)
            .map(|(_, _, item)| item)
    }

    fn text(&self, role: Role) -> Option<Text> {
        self.of(role).find_map(Item::text).filter(Text::is_whole)
    }

    fn object(&self, role: Role) -> Option<u64> {
        self.of(role).find_map(Item::object)
    }

    /// The framework that comes first in the table: those that build on
    /// another come before it.
    fn framework(&self) -> Option<&'static str> {
        self.items
            .iter()
            .map(|(_, framework, _)| *framework)
            .filter_map(|idx| FRAMEWORKS.get(idx).map(|framework| (idx, framework)))
            .filter(|(_, framework)| framework.routes)
            .min_by_key(|(idx, _)| *idx)
            .map(|(_, framework)| framework.name)
    }

    /// The pattern that matched, with those of the applications around it.
    fn route<M: Memory>(&self, objects: Objects<'_, M>, stats: &PythonStats) -> Option<Arc<str>> {
        if let Some(whole) = self.text(Role::WholeRoute) {
            return Some(whole.as_str().into());
        }
        if let Some(route) = self.text(Role::SlashlessRoute) {
            return Some(format!("/{}", route.as_str()).into());
        }
        let prefixes: Vec<_> = self.of(Role::Prefix).rev().collect();
        let mut route = String::new();
        for prefix in &prefixes {
            route.push_str(prefix.text().filter(Text::is_whole)?.as_str());
        }
        if let Some(leaf) = self.text(Role::Route) {
            route.push_str(leaf.as_str());
            return Some(route.into());
        }
        if !prefixes.is_empty() {
            // A mounted application that is no router.
            return Some(route.into());
        }
        let leaf = self.object(Role::Leaf)?;
        let found = self.leaf(objects, leaf);
        if found.is_none() {
            stats.unplaced.one();
        }
        found
    }

    /// The pattern of a route object, where its frames are gone.
    fn leaf<M: Memory>(&self, objects: Objects<'_, M>, leaf: u64) -> Option<Arc<str>> {
        let path = path_of(objects, leaf)?;
        let included = self.object(Role::LeafContext).and_then(|context| {
            let original = member(objects, context, "original_route")?;
            (original == leaf).then(|| path_of(objects, context))?
        });
        let whole = |text: Text| text.is_whole().then(|| text.into_string());
        let mounted = self
            .of(Role::MountedAt)
            .last()
            .and_then(Item::text)
            .map_or_else(|| Some(String::new()), whole)?;
        let outside = match self.of(Role::MountedOutside).last().and_then(Item::text) {
            Some(text) => whole(text)?,
            None => mounted.clone(),
        };
        let inside = mounted.strip_prefix(&outside)?;
        let path = included.unwrap_or(path);
        if inside.is_empty() {
            return Some(path.into());
        }
        let application = self.of(Role::Application).last()?.object()?;
        let mounts = mounts(objects, application, inside, leaf)?;
        // Where an application was mounted and nothing in it matched, the
        // route is the mount.
        if mounts.leaf_is_mount {
            return Some(inside.into());
        }
        Some(format!("{inside}{path}").into())
    }
}

/// Whether an exception is no failure: raised on purpose, or to end a task.
fn handled<M: Memory>(objects: Objects<'_, M>, class: u64, framework: usize) -> bool {
    let handled = FRAMEWORKS
        .get(framework)
        .map_or(&[][..], |framework| framework.handled);
    let Objects { memory, layout } = objects;
    objects.mro(class).unwrap_or_default().iter().any(|class| {
        let mut buffer = [0; 256];
        attribute::qualified_type_name(memory, layout, *class, &mut buffer)
            .is_ok_and(|name| handled.contains(&name.text) || ENDINGS.contains(&name.text))
    })
}

/// What was found under a path.
struct Mounted {
    leaf_is_mount: bool,
}

/// Follows mounts whose patterns are the path itself, without parameters;
/// `None` if that does not lead to the path's end.
fn mounts<M: Memory>(
    objects: Objects<'_, M>,
    application: u64,
    path: &str,
    leaf: u64,
) -> Option<Mounted> {
    let mut at = application;
    let mut rest = path;
    for _ in 0..MAX_MOUNTS {
        let router = member(objects, at, "router").unwrap_or(at);
        let routes = objects.list(member(objects, router, "routes")?).ok()?;
        let mount = routes.into_iter().take(MAX_ROUTES).find_map(|route| {
            if !is_mount(objects, route) {
                return None;
            }
            let prefix = path_of(objects, route)?;
            let after = rest.strip_prefix(prefix.as_str())?;
            let whole = after.is_empty() || after.starts_with('/');
            (whole && !prefix.is_empty()).then_some((route, after))
        });
        let (route, after) = mount?;
        if after.is_empty() {
            return Some(Mounted {
                leaf_is_mount: route == leaf,
            });
        }
        rest = after;
        at = member(objects, route, "_base_app").or_else(|| member(objects, route, "app"))?;
    }
    None
}

fn is_mount<M: Memory>(objects: Objects<'_, M>, route: u64) -> bool {
    let types = objects
        .type_of(route)
        .and_then(|class| objects.mro(class))
        .unwrap_or_default();
    types.into_iter().any(|class| {
        objects
            .name_in(class, objects.layout.heap_type.ht_name)
            .is_ok_and(|name| name == "Mount")
    })
}

fn path_of<M: Memory>(objects: Objects<'_, M>, route: u64) -> Option<String> {
    objects.name(member(objects, route, "path")?).ok()
}

fn member<M: Memory>(objects: Objects<'_, M>, object: u64, name: &str) -> Option<u64> {
    let Objects { memory, layout } = objects;
    attribute::instance_attribute(memory, layout, object, name)
        .ok()
        .flatten()
}
