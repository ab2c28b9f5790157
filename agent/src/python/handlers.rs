//! Views: from the callable that a framework calls to the function that
//! people wrote.

use std::collections::HashMap;
use std::sync::Arc;

use pyframes::{Memory, attribute};

use super::names::Names;
use super::objects::Objects;
use crate::insight::CodeLocation;

/// Most views that are remembered.
const MAX_VIEWS: usize = 4096;
/// Most functions that wrap one another.
const MAX_WRAPPERS: u32 = 16;

/// A view that was found, with what shows that its address still is its own.
#[derive(Clone, Debug)]
struct Known {
    class: u64,
    code: u64,
    location: Option<Arc<CodeLocation>>,
}

/// The views of one process.
#[derive(Debug, Default)]
pub(super) struct Handlers {
    /// By address and method of the request.
    known: HashMap<(u64, Option<String>), Known>,
    /// Views of an application by name.
    named: HashMap<(u64, String), u64>,
}

impl Handlers {
    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        self.known.clear();
        self.named.clear();
    }

    /// Where a view was written.
    pub(super) fn location<M: Memory>(
        &mut self,
        objects: Objects<'_, M>,
        names: &mut Names,
        handler: u64,
        method: Option<&str>,
    ) -> Option<Arc<CodeLocation>> {
        let class = objects.type_of(handler).ok()?;
        // Of whatever is no function these are some other bytes of it, which
        // serve as well.
        let code = objects
            .field(handler, objects.layout.function.func_code)
            .unwrap_or(0);
        let key = (handler, method.map(str::to_owned));
        if let Some(known) = self.known.get(&key)
            && (known.class, known.code) == (class, code)
        {
            return known.location.clone();
        }
        let location = locate(objects, names, handler, method);
        if self.known.len() >= MAX_VIEWS {
            self.known.clear();
        }
        let known = Known {
            class,
            code,
            location: location.clone(),
        };
        self.known.insert(key, known);
        location
    }

    /// The callable that an application has under a name.
    pub(super) fn named<M: Memory>(
        &mut self,
        objects: Objects<'_, M>,
        application: u64,
        name: &str,
    ) -> Option<u64> {
        let Objects { memory, layout } = objects;
        let key = (application, name.to_owned());
        if let Some(handler) = self.named.get(&key) {
            return Some(*handler);
        }
        let views = attribute::attribute(memory, layout, application, "view_functions").ok()??;
        let handler = objects.item(views, name).ok()??;
        if self.named.len() >= MAX_VIEWS {
            self.named.clear();
        }
        self.named.insert(key, handler);
        Some(handler)
    }
}

fn locate<M: Memory>(
    objects: Objects<'_, M>,
    names: &mut Names,
    handler: u64,
    method: Option<&str>,
) -> Option<Arc<CodeLocation>> {
    let Objects { memory, layout } = objects;
    if objects.is_type(handler) {
        let function = method_of(objects, handler, method)?;
        return names.function(objects, function);
    }
    let Some(mut function) = objects.function(handler) else {
        // An object that is called.
        let class = objects.type_of(handler).ok()?;
        let call = attribute::class_attribute(memory, layout, class, "__call__").ok()??;
        return names.function(objects, objects.function(call)?);
    };
    for _ in 0..MAX_WRAPPERS {
        if let Some(function) = of_class(objects, function, method) {
            return names.function(objects, function);
        }
        let wrapped = objects
            .wrapped(function)
            .and_then(|wrapped| objects.function(wrapped));
        match wrapped {
            Some(wrapped) => function = wrapped,
            None => break,
        }
    }
    names.function(objects, function)
}

/// The method of a class that a generated view function calls: it says which
/// class it stands for (`view_class` of Flask and Django, `cls` of Django REST
/// framework), and may say which of its methods (`actions`).
fn of_class<M: Memory>(
    objects: Objects<'_, M>,
    function: u64,
    method: Option<&str>,
) -> Option<u64> {
    let namespace = objects
        .field(function, objects.layout.function.func_dict)
        .ok()?;
    let named = |name| objects.item(namespace, name).ok().flatten();
    let class = named("view_class").or_else(|| named("cls"))?;
    if !objects.is_type(class) {
        return None;
    }
    if let Some(actions) = named("actions")
        && let Some(method) = method
        && let Ok(Some(action)) = objects.item(actions, &method.to_ascii_lowercase())
    {
        let action = objects.name(action).ok()?;
        return in_class(objects, class, &action);
    }
    method_of(objects, class, method)
}

/// The method of a class that serves requests of a method.
fn method_of<M: Memory>(objects: Objects<'_, M>, class: u64, method: Option<&str>) -> Option<u64> {
    let method = method?.to_ascii_lowercase();
    in_class(objects, class, &method)
        .or_else(|| (method == "head").then(|| in_class(objects, class, "get"))?)
        .or_else(|| in_class(objects, class, "dispatch_request"))
}

fn in_class<M: Memory>(objects: Objects<'_, M>, class: u64, name: &str) -> Option<u64> {
    let Objects { memory, layout } = objects;
    let found = attribute::class_attribute(memory, layout, class, name).ok()??;
    objects.function(found)
}
