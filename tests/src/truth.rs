//! What a framework says of the requests that it served (`APP_TRUTH`, written
//! by `tests/apps/frameworks/truth.py`).

use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::trace::complete_lines;

/// A request as its framework tells it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Told {
    /// Its method.
    pub method: String,
    /// Its path.
    pub path: String,
    /// The status that the framework answered with.
    pub status: u16,
    /// The route that matched.
    pub route: Option<String>,
    /// The function that served it.
    pub handler: Option<Function>,
    /// The exception that the application did not handle.
    pub error: Option<Error>,
}

/// A function.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Function {
    /// Module and qualified name.
    pub name: String,
    /// Its file.
    pub file: String,
    /// The first line of its code.
    pub line: u32,
}

/// An exception.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Error {
    /// Qualified name of its type.
    #[serde(rename = "type")]
    pub kind: String,
    /// What `str()` makes of it.
    pub message: String,
    /// What `traceback` makes of it.
    pub stacktrace: String,
}

/// What is in the file so far.
pub fn read(path: &Path) -> Result<Vec<Told>> {
    let bytes = std::fs::read(path)
        .with_context(|| format!("cannot read the truth in {}", path.display()))?;
    let lines = complete_lines(&bytes)?.lines().map(|line| {
        serde_json::from_str(line).with_context(|| format!("no line of truth: {line}"))
    });
    lines.collect()
}

/// What is told of the only request with this method and path.
pub fn of<'a>(told: &'a [Told], method: &str, path: &str) -> Result<&'a Told> {
    let mut found = told
        .iter()
        .filter(|told| told.method == method && told.path == path);
    match (found.next(), found.next()) {
        (Some(told), None) => Ok(told),
        (None, _) => bail!("the application tells nothing of {method} {path}"),
        (Some(_), Some(_)) => bail!("the application tells of {method} {path} twice"),
    }
}

impl Function {
    /// The name without module and class.
    pub fn simple_name(&self) -> &str {
        self.name.rsplit('.').next().unwrap_or(&self.name)
    }
}
