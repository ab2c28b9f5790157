//! From the values of a stack to what they say of an exchange.

use std::sync::Arc;

use abi::record::{Owner, moment, part, rule, stack_flag, value};
use pyframes::{Memory, attribute};

use super::ends::Ends;
use super::exception::Teller;
use super::frameworks::{Catchers, FRAMEWORKS, Role, Want};
use super::names::Caller;
use super::objects::Objects;
use super::pages::Pages;
use super::paths::Style;
use super::rules;
use super::tree::{Leaf, Placed, member};
use super::values::{self, Item, Text};
use super::{PythonStats, StackEvent, State};
use crate::insight::{Insight, Subject};
use crate::stream::Evidence;

/// Longest statement that is read, bytes.
const MAX_STATEMENT: usize = 16 * 1024;
/// Most handlers of exceptions that are looked through.
const MAX_HANDLERS: usize = 4096;

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

/// What a stack is resolved with.
pub(super) struct View<'a> {
    pub(super) state: &'a mut State,
    pub(super) pages: &'a Pages,
    /// Of every recipe id, less one, the framework and the value.
    pub(super) wants: &'a [(usize, &'static Want)],
    pub(super) ends: &'a mut Ends,
    pub(super) stats: &'a PythonStats,
}

/// What the stack of a process tells.
pub(super) fn insight(view: &mut View<'_>, event: &StackEvent<'_>) -> Option<Insight> {
    let View {
        state,
        pages,
        wants,
        ends,
        stats,
    } = view;
    let stack = &event.stack;
    let objects = Objects {
        memory: &pages.of(stack.pid, &state.process),
        layout: &state.layout,
    };
    if stack.moment == moment::REQUEST {
        let frames = || values::frames(event.frames);
        let items = values::items(event.values);
        let Caller {
            location: code,
            end,
        } = state.names.caller(objects, frames());
        if stack.flags & stack_flag::ENDED == 0 {
            if let Some(end) = end
                && stack.group == state.group
                && !state.compiled.contains_key(&end)
            {
                ends.add(stack.group, end);
            }
        } else if end.is_none()
            && let Some(last) = frames().last()
        {
            stats.stale_ends.one();
            ends.remove(stack.group, last.code);
        }
        let serving = serving(&items, wants);
        let libraries = state
            .libraries
            .then(|| state.names.libraries(objects, frames()));
        let statement = statement(objects, &items, wants);
        if code.is_none() && serving.is_none() && libraries.is_none() && statement.is_none() {
            return None;
        }
        return Some(Insight {
            subject: Subject::Sending(stack.conn),
            at: stack.at,
            framework: None,
            route: None,
            code,
            serving,
            libraries,
            statement,
            exception: None,
        });
    }
    let items = values::items(event.values);
    let serving = serving(&items, wants);
    let told = Told::new(&items, wants, stats);
    let placed = told.leaf(objects).map(|leaf| {
        let placed = state.tree.placed(objects, leaf, stack.at);
        if placed.route.is_none() {
            stats.unplaced.one();
        }
        placed
    });
    let method = told.text(Role::Method).map(Text::into_string);
    let fastapi = placed.as_ref().is_some_and(|placed| placed.fastapi);
    let matched = placed.is_some();
    let Placed {
        route, endpoint, ..
    } = placed.unwrap_or_default();
    let by_path = told
        .application()
        .zip(told.text(Role::Path))
        .map(|(application, path)| {
            let request = (method.as_deref(), path.as_str());
            state.paths.find(objects, application, request, stack.at)
        });
    let by_path = by_path.unwrap_or_default();
    let route = told
        .route()
        .or(route)
        .or(by_path.route)
        .or_else(|| told.rule(objects));
    let matched = matched || route.is_some();
    let endpoint = endpoint.or(by_path.handler);
    let handler = told.object(Role::Handler).or_else(|| {
        let name = told.text(Role::ViewName)?;
        let application = told.object(Role::Application)?;
        state.handlers.named(objects, application, name.as_str())
    });
    // What answers where nothing matched is no view of the application's.
    let handler = handler.or(endpoint).filter(|_| matched);
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
        let raised = items.get(idx)?;
        if handled(objects, raised.value.type_address, framework)
            || told.caught(objects, wants, raised)
        {
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
            _ => Subject::Owned(match serving {
                // What a server's frame tells counts where nothing else does.
                Some(owner) if stack.owner.conn == 0 => Evidence {
                    owner,
                    rule: rule::FRAME,
                },
                _ => Evidence {
                    owner: stack.owner,
                    rule: stack.rule,
                },
            }),
        },
        at: stack.at,
        framework: if fastapi {
            Some("fastapi")
        } else {
            told.framework()
        },
        route,
        code,
        serving: None,
        libraries: None,
        statement: None,
        exception,
    })
}

/// The statement that the innermost driver's frame holds.
fn statement<M: Memory>(
    objects: Objects<'_, M>,
    items: &[Item<'_>],
    wants: &[(usize, &'static Want)],
) -> Option<Arc<str>> {
    let is_statement = |item: &&Item<'_>| {
        let idx = (item.value.recipe as usize).checked_sub(1);
        let want = idx.and_then(|idx| wants.get(idx));
        want.is_some_and(|(_, want)| want.role == Role::Statement)
    };
    let item = items
        .iter()
        .filter(is_statement)
        .min_by_key(|item| item.value.frame)?;
    let text = item.text()?;
    if text.is_whole() {
        return Some(text.as_str().into());
    }
    // The rest of a long one is read where it was. Should there be something
    // else by now, it does not begin like this; and whatever it is counts only
    // if it is the same statement as was sent.
    let whole = objects.statement(item.object()?, MAX_STATEMENT).ok()?;
    whole.starts_with(text.as_str()).then(|| whole.into())
}

/// What the connection that the innermost server's frame serves has received
/// last, if all holds that must.
fn serving(items: &[Item<'_>], wants: &[(usize, &'static Want)]) -> Option<Owner> {
    let want = |item: &Item<'_>| {
        let idx = (item.value.recipe as usize).checked_sub(1)?;
        wants
            .get(idx)
            .map(|(framework, want)| (*framework, want.role))
    };
    let innermost = items
        .iter()
        .filter(|item| matches!(want(item), Some((_, Role::Connection { .. }))))
        .map(|item| item.value.frame)
        .min()?;
    let (framework, conditions, owner) = items
        .iter()
        .filter(|item| item.value.frame == innermost)
        .find_map(|item| match want(item)? {
            (framework, Role::Connection { conditions, .. }) => {
                Some((framework, conditions, item.owner()?))
            }
            _ => None,
        })?;
    let holding = items
        .iter()
        .filter(|item| item.value.frame == innermost && item.holds())
        .filter(|item| matches!(want(item), Some((its, Role::Condition(_))) if its == framework))
        .count();
    (holding == conditions).then_some(owner)
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

    /// Whether the application handles the exception at an index itself.
    fn caught<M: Memory>(
        &self,
        objects: Objects<'_, M>,
        wants: &[(usize, &'static Want)],
        exception: &Item<'_>,
    ) -> bool {
        let class = exception.value.type_address;
        let mut catchers = self.items.iter().filter_map(|(role, _, item)| match role {
            Role::Catchers(catchers) => Some((*catchers, item.object()?)),
            _ => None,
        });
        if catchers.any(|(catchers, object)| catches(objects, catchers, object, class)) {
            return true;
        }
        // The default handler comes right after the exception in the table.
        let next = wants.get(exception.value.recipe as usize);
        next.is_some_and(|(_, want)| want.role == Role::Default)
            && !self
                .of(Role::Default)
                .any(|item| item.value.frame == exception.value.frame)
    }

    /// The application whose routes the path tells.
    fn application(&self) -> Option<(u64, Style)> {
        self.items.iter().find_map(|(role, _, item)| match role {
            Role::Wsgi(style) => Some((item.object()?, *style)),
            _ => None,
        })
    }

    /// The pattern of the rule that leads to the class of what serves.
    fn rule<M: Memory>(&self, objects: Objects<'_, M>) -> Option<Arc<str>> {
        let instance = self.of(Role::Instance).next()?;
        let application = self.object(Role::Application)?;
        rules::pattern(objects, application, instance.value.type_address)
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

    /// The pattern that matched, where a text tells it.
    fn route(&self) -> Option<Arc<str>> {
        if let Some(whole) = self.text(Role::WholeRoute) {
            return Some(whole.as_str().into());
        }
        let route = self.text(Role::SlashlessRoute)?;
        Some(format!("/{}", route.as_str()).into())
    }

    /// The route object that matched.
    fn leaf<M: Memory>(&self, objects: Objects<'_, M>) -> Option<Leaf> {
        let included = self.object(Role::LeafContext).and_then(|context| {
            let original = member(objects, context, "original_route")?;
            Some((original, context))
        });
        let root = self.object(Role::Root);
        let (object, context) = match (self.object(Role::Leaf), included) {
            (Some(object), Some((original, context))) if original == object => {
                (object, Some(context))
            }
            (Some(object), _) => (object, None),
            (None, Some((object, context))) => (object, Some(context)),
            (None, None) => return None,
        };
        Some(Leaf {
            object,
            context,
            root,
        })
    }
}

/// Whether an application has a handler for exceptions of a type.
fn catches<M: Memory>(
    objects: Objects<'_, M>,
    catchers: Catchers,
    object: u64,
    class: u64,
) -> bool {
    let Objects { memory, layout } = objects;
    let name = match catchers {
        Catchers::Falcon => "_error_handlers",
        Catchers::Sanic => "cached_handlers",
    };
    let Ok(Some(table)) = attribute::attribute(memory, layout, object, name) else {
        return false;
    };
    let Ok(table) = objects.dict(table) else {
        return false;
    };
    let entries: Vec<_> = table.entries(memory).flatten().take(MAX_HANDLERS).collect();
    match catchers {
        // What is nearest in the order of look-ups handles it.
        Catchers::Falcon => {
            let handler = objects
                .mro(class)
                .unwrap_or_default()
                .iter()
                .find_map(|class| entries.iter().find(|entry| entry.key == *class))
                .and_then(|entry| objects.function(entry.value));
            handler.is_some_and(|handler| {
                let module = objects.module_of(handler).unwrap_or_default();
                let name = objects
                    .name_in(handler, layout.function.func_name)
                    .unwrap_or_default();
                !module.starts_with("falcon.") && name != "_python_error_handler"
            })
        }
        // Looking it up has put the very type there.
        Catchers::Sanic => entries.iter().any(|entry| {
            let key = objects.tuple(entry.key).unwrap_or_default();
            key.first() == Some(&class) && !objects.is(entry.value, "NoneType")
        }),
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

#[cfg(test)]
mod tests {
    use abi::record::Value;
    use zerocopy::IntoBytes as _;

    use super::super::servers::SERVERS;
    use super::*;

    /// The rows of waitress: two conditions and a connection.
    fn wants() -> Vec<(usize, &'static Want)> {
        let rows = SERVERS.iter().filter(|server| server.name == "waitress");
        let values = rows.flat_map(|server| server.rows.iter().flat_map(|row| row.values));
        values.map(|want| (0, want)).collect()
    }

    fn item(recipe: u32, frame: u16, kind: u8, bytes: &[u8]) -> Item<'_> {
        Item {
            value: Value {
                recipe,
                frame,
                kind,
                part: part::ITSELF,
                len: bytes.len() as u32,
                width: 0,
                detail: 0,
                pad: 0,
                address: 0x5000,
                type_address: 0,
            },
            bytes,
        }
    }

    #[test]
    fn a_connection_counts_only_if_every_condition_holds() {
        let wants = wants();
        assert_eq!(wants.len(), 3);
        let owner = Owner { conn: 7, offset: 9 };
        let bytes = owner.as_bytes();
        let check = |kinds: [u8; 3], expected: Option<Owner>| {
            let items: Vec<_> = (1..)
                .zip(kinds)
                .map(|(recipe, kind)| {
                    let bytes = if kind == value::CONNECTION {
                        bytes
                    } else {
                        &[]
                    };
                    item(recipe, 4, kind, bytes)
                })
                .collect();
            assert_eq!(serving(&items, &wants), expected, "{kinds:?}");
        };
        let (holds, fails, found) = (value::NONE, value::FAILED, value::CONNECTION);
        check([holds, holds, found], Some(owner));
        check([holds, fails, found], None);
        check([fails, holds, found], None);
        check([holds, holds, fails], None);
        // One that was lost holds no more than one that fails.
        let found = item(3, 4, value::CONNECTION, bytes);
        assert_eq!(
            serving(&[item(1, 4, value::NONE, &[]), found], &wants),
            None
        );
        // Nor does one of another frame.
        let others = [1, 2].map(|recipe| item(recipe, 3, value::NONE, &[]));
        assert_eq!(serving(&[others[0], others[1], found], &wants), None);
        // A variable that is not bound is no `None`.
        let mut unbound = item(1, 4, value::NONE, &[]);
        unbound.value.address = 0;
        let second = item(2, 4, value::NONE, &[]);
        assert_eq!(serving(&[unbound, second, found], &wants), None);
    }
}
