//! Routes of Starlette and FastAPI: a tree of routers, mounts and included
//! routers, in which the route that matched is looked for by its address, so
//! that its pattern is told with those of all mounts around it.

use std::collections::HashMap;
use std::sync::Arc;

use pyframes::{Memory, attribute};

use super::objects::Objects;

/// Deepest nesting of routers.
const MAX_DEPTH: u32 = 16;
/// Most routes of an application.
const MAX_ROUTES: usize = 20_000;
/// How long a route is remembered, nanoseconds: its address may come to stand
/// for another.
const REMEMBERED: u64 = 1_000_000_000;
/// Most routes that are remembered.
const MAX_REMEMBERED: usize = 4096;

/// A route object that matched, and where it is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Leaf {
    /// The route object.
    pub(super) object: u64,
    /// What says how it is included, if anything does: an object with `path`
    /// and `endpoint`.
    pub(super) context: Option<u64>,
    /// The outermost router.
    pub(super) root: Option<u64>,
}

/// What a route object says.
#[derive(Clone, Debug, Default)]
pub(super) struct Placed {
    /// The pattern, with those of the mounts around it.
    pub(super) route: Option<Arc<str>>,
    /// The view.
    pub(super) endpoint: Option<u64>,
    /// Whether the router is FastAPI's.
    pub(super) fastapi: bool,
}

/// The routes that were looked up.
#[derive(Debug, Default)]
pub(super) struct Tree {
    known: HashMap<Leaf, (u64, Placed)>,
}

impl Tree {
    /// What a route object says; `now` in monotonic nanoseconds.
    pub(super) fn placed<M: Memory>(
        &mut self,
        objects: Objects<'_, M>,
        leaf: Leaf,
        now: u64,
    ) -> Placed {
        if let Some((then, placed)) = self.known.get(&leaf)
            && now.saturating_sub(*then) < REMEMBERED
        {
            return placed.clone();
        }
        let placed = look_up(objects, leaf);
        if self.known.len() >= MAX_REMEMBERED {
            self.known.clear();
        }
        self.known.insert(leaf, (now, placed.clone()));
        placed
    }
}

fn look_up<M: Memory>(objects: Objects<'_, M>, leaf: Leaf) -> Placed {
    let told_by = leaf.context.unwrap_or(leaf.object);
    let path = member(objects, told_by, "path").and_then(|path| objects.name(path).ok());
    let mut search = Search {
        objects,
        wanted: leaf.object,
        seen: 0,
        kinds: HashMap::new(),
    };
    let prefix = leaf.root.and_then(|root| search.below(root, 0));
    Placed {
        route: path
            .zip(prefix)
            .map(|(path, prefix)| format!("{prefix}{path}").into()),
        endpoint: member(objects, told_by, "endpoint"),
        fastapi: leaf
            .root
            .is_some_and(|root| objects.is_instance(root, "fastapi.routing.APIRouter")),
    }
}

/// What a route is, by its type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Mount,
    Included,
    Host,
    Other,
}

/// A search for a route object.
struct Search<'a, M> {
    objects: Objects<'a, M>,
    wanted: u64,
    seen: usize,
    kinds: HashMap<u64, Kind>,
}

impl<M: Memory> Search<'_, M> {
    /// The patterns of the mounts between an application and the route.
    fn below(&mut self, application: u64, depth: u32) -> Option<String> {
        if depth > MAX_DEPTH {
            return None;
        }
        let routes = self.routes(application)?;
        if routes.contains(&self.wanted) {
            return Some(String::new());
        }
        self.seen += routes.len();
        if self.seen > MAX_ROUTES {
            return None;
        }
        routes.into_iter().find_map(|route| {
            let inner = |search: &Self, name| member(search.objects, route, name);
            match self.kind(route) {
                Kind::Other => None,
                Kind::Included => self.below(inner(self, "original_router")?, depth + 1),
                Kind::Host => self.below(inner(self, "app")?, depth + 1),
                Kind::Mount => {
                    let application = inner(self, "_base_app").or_else(|| inner(self, "app"))?;
                    let below = self.below(application, depth + 1)?;
                    let path = self.objects.name(inner(self, "path")?).ok()?;
                    Some(format!("{path}{below}"))
                }
            }
        })
    }

    /// The routes of an application: its router's, through what wraps it.
    fn routes(&self, application: u64) -> Option<Vec<u64>> {
        let mut at = application;
        for _ in 0..MAX_DEPTH {
            if let Some(routes) = member(self.objects, at, "routes") {
                return self.objects.list(routes).ok();
            }
            at = member(self.objects, at, "router").or_else(|| member(self.objects, at, "app"))?;
        }
        None
    }

    fn kind(&mut self, route: u64) -> Kind {
        let objects = self.objects;
        let Ok(class) = objects.type_of(route) else {
            return Kind::Other;
        };
        *self.kinds.entry(class).or_insert_with(|| {
            let types = objects.mro(class).unwrap_or_default();
            let names = types
                .iter()
                .filter_map(|class| {
                    let qualname = objects.layout.heap_type.ht_name;
                    objects.name_in(*class, qualname).ok()
                })
                .find_map(|name| match name.as_str() {
                    "Mount" => Some(Kind::Mount),
                    "_IncludedRouter" => Some(Kind::Included),
                    "Host" => Some(Kind::Host),
                    _ => None,
                });
            names.unwrap_or(Kind::Other)
        })
    }
}

/// An attribute that an object itself has.
pub(super) fn member<M: Memory>(objects: Objects<'_, M>, object: u64, name: &str) -> Option<u64> {
    let Objects { memory, layout } = objects;
    attribute::instance_attribute(memory, layout, object, name)
        .ok()
        .flatten()
}
