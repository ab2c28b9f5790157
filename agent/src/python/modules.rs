//! `sys.modules` of a process: what is imported, and in which version.

use std::collections::HashMap;

use pyframes::{Dict, Error, Memory};

use super::objects::Objects;

/// Modules by name.
pub(super) type Modules = HashMap<String, u64>;

/// Every module.
pub(super) fn read<M: Memory>(objects: Objects<'_, M>, interpreter: u64) -> Result<Modules, Error> {
    let Objects { memory, layout } = objects;
    let dict = objects.field(interpreter, layout.interpreter.modules)?;
    let mut modules = Modules::new();
    for entry in Dict::open(memory, layout, dict)?.entries(memory) {
        let entry = entry?;
        if let Ok(name) = objects.name(entry.key) {
            modules.insert(name, entry.value);
        }
    }
    Ok(modules)
}

/// `__version__` of a module, if it is a text.
pub(super) fn version<M: Memory>(
    objects: Objects<'_, M>,
    modules: &Modules,
    name: &str,
) -> Option<String> {
    let version = objects.module_attribute(*modules.get(name)?, "__version__")?;
    objects.name(version).ok()
}

/// Modules that only a running server has imported, with the server's name;
/// one that manages another's workers comes first.
const SERVERS: &[(&str, &str)] = &[
    ("gunicorn.arbiter", "gunicorn"),
    ("uvicorn.server", "uvicorn"),
    ("hypercorn.run", "hypercorn"),
    ("daphne.server", "daphne"),
    ("granian.server", "granian"),
    ("waitress.server", "waitress"),
    ("uwsgi", "uwsgi"),
];

/// The server that runs the process, with its version if it tells.
pub(super) fn server<M: Memory>(
    objects: Objects<'_, M>,
    modules: &Modules,
) -> Option<(&'static str, Option<String>)> {
    let (_, name) = SERVERS
        .iter()
        .find(|(module, _)| modules.contains_key(*module))?;
    Some((name, version(objects, modules, name)))
}
