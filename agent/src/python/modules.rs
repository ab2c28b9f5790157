//! `sys.modules` of a process: what is imported, and in which version.

use std::collections::HashMap;

use pyframes::{Dict, Error, Memory};

use super::objects::Objects;

/// Modules by name.
pub(super) type Modules = HashMap<String, u64>;

/// What changes when a module is imported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    /// Address of the dictionary's keys.
    keys: u64,
    /// `dk_nentries`: grows with every new key.
    entries: u64,
    /// `ma_used`.
    used: u64,
}

/// How many modules there are by now.
pub(super) fn extent<M: Memory>(
    objects: Objects<'_, M>,
    interpreter: u64,
) -> Result<Extent, Error> {
    let Objects { memory, layout } = objects;
    let dict = objects.field(interpreter, layout.interpreter.modules)?;
    let keys = objects.field(dict, layout.dict.ma_keys)?;
    Ok(Extent {
        keys,
        entries: memory.u64(keys.wrapping_add(u64::from(layout.dict_keys.dk_nentries)))?,
        used: memory.u64(dict.wrapping_add(u64::from(layout.dict.ma_used)))?,
    })
}

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
