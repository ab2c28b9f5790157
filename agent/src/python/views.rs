//! Which view serves a route of Pyramid, as its introspection has it
//! (`registry.introspector`, Pyramid 1.10 to 2.1).

use std::collections::HashMap;

use pyframes::Memory;

use super::objects::Objects;
use super::tree::member;

/// Most views of an application.
const MAX_VIEWS: usize = 20_000;

/// A view of a route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct View {
    /// The methods that it is for; none if for all.
    methods: Vec<String>,
    /// Whether more than route and method decides.
    conditional: bool,
    /// Its function.
    function: Option<u64>,
}

/// The views of a router's application by the names of their routes.
pub(super) fn of_router<M: Memory>(
    objects: Objects<'_, M>,
    router: u64,
) -> HashMap<String, Vec<View>> {
    let mut found: HashMap<String, Vec<View>> = HashMap::new();
    for entry in introspected(objects, router).unwrap_or_default() {
        if let Some((route, view)) = view(objects, entry) {
            found.entry(route).or_default().push(view);
        }
    }
    found
}

/// The function of the view that serves a method, if there is no doubt: a
/// view for the method goes before one for all.
pub(super) fn serving(views: &[View], method: &str) -> Option<u64> {
    // Who takes GET takes HEAD.
    let method = if method == "HEAD" { "GET" } else { method };
    let fits = |view: &&View| view.methods.is_empty() || view.methods.iter().any(|m| m == method);
    let fitting: Vec<&View> = views.iter().filter(fits).collect();
    if fitting.iter().any(|view| view.conditional) {
        return None;
    }
    let (all, named): (Vec<_>, Vec<_>) = fitting
        .into_iter()
        .partition(|view| view.methods.is_empty());
    match (named.as_slice(), all.as_slice()) {
        ([view], _) | ([], [view]) => view.function,
        _ => None,
    }
}

/// The introspectables of the category `views`, each a dictionary.
fn introspected<M: Memory>(objects: Objects<'_, M>, router: u64) -> Option<Vec<u64>> {
    let registry = member(objects, router, "registry")?;
    let introspector = member(objects, registry, "introspector")?;
    let categories = member(objects, introspector, "_categories")?;
    let views = objects.item(categories, "views").ok()??;
    let mut found = Vec::new();
    for entry in objects.dict(views).ok()?.entries(objects.memory) {
        let entry = entry.ok()?;
        // Each is there twice: under its discriminator and under its hash.
        if objects.tuple(entry.key).is_ok() {
            found.push(entry.value);
        }
        if found.len() >= MAX_VIEWS {
            return None;
        }
    }
    Some(found)
}

fn view<M: Memory>(objects: Objects<'_, M>, entry: u64) -> Option<(String, View)> {
    let item = |name| {
        let value = objects.item(entry, name).ok().flatten();
        value.filter(|value| !objects.is(*value, "NoneType"))
    };
    let route = objects.name(item("route_name")?).ok()?;
    let methods = match item("request_methods") {
        None => Vec::new(),
        Some(methods) => texts(objects, methods)?,
    };
    // The one for its methods is known.
    let known = usize::from(!methods.is_empty());
    let predicates = item("predicates").and_then(|list| objects.list(list).ok());
    let name = item("name").and_then(|name| objects.name(name).ok());
    let attribute = item("attr").and_then(|name| objects.name(name).ok());
    Some((
        route,
        View {
            methods,
            conditional: item("context").is_some()
                || name.is_some_and(|name| !name.is_empty())
                || predicates.is_none_or(|predicates| predicates.len() != known),
            function: function(objects, item("callable")?, attribute.as_deref()),
        },
    ))
}

/// A text, or a tuple of texts.
fn texts<M: Memory>(objects: Objects<'_, M>, value: u64) -> Option<Vec<String>> {
    match objects.tuple(value) {
        Err(_) => Some(vec![objects.name(value).ok()?]),
        Ok(items) => items
            .into_iter()
            .map(|item| objects.name(item).ok())
            .collect(),
    }
}

/// The function that a callable comes down to: itself, or the method of a
/// class.
fn function<M: Memory>(
    objects: Objects<'_, M>,
    callable: u64,
    attribute: Option<&str>,
) -> Option<u64> {
    let class = match objects.is_type(callable) {
        true => callable,
        false => match objects.function(callable) {
            Some(function) => return Some(function),
            None => objects.type_of(callable).ok()?,
        },
    };
    let name = attribute.unwrap_or("__call__");
    let types = objects.mro(class).ok()?;
    let method = types
        .into_iter()
        .find_map(|class| objects.own_attribute(class, name))?;
    objects.function(method)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(methods: &[&str], conditional: bool, function: u64) -> View {
        View {
            methods: methods.iter().map(|&method| method.to_owned()).collect(),
            conditional,
            function: Some(function),
        }
    }

    #[test]
    fn the_view_of_the_method_serves() {
        let views = [
            view(&["GET"], false, 1),
            view(&["PUT", "POST"], false, 2),
            view(&[], false, 3),
        ];
        assert_eq!(serving(&views, "GET"), Some(1));
        assert_eq!(serving(&views, "HEAD"), Some(1));
        assert_eq!(serving(&views, "POST"), Some(2));
        assert_eq!(serving(&views, "DELETE"), Some(3));
        assert_eq!(serving(&views[..2], "DELETE"), None);
    }

    #[test]
    fn what_more_decides_leaves_a_doubt() {
        let views = [view(&["GET"], false, 1), view(&["GET"], true, 2)];
        assert_eq!(serving(&views, "GET"), None);
        let views = [view(&[], false, 1), view(&[], false, 2)];
        assert_eq!(serving(&views, "GET"), None);
        let views = [view(&["PUT"], true, 1), view(&["GET"], false, 2)];
        assert_eq!(serving(&views, "GET"), Some(2));
    }
}
