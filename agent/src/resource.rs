//! The OpenTelemetry resource of one traced process.

use crate::attribute::{Attributes, Value};

/// Resource attributes of one process; built once when it is found.
#[derive(Clone, Debug, PartialEq)]
pub struct Resource {
    /// Attributes by the resource conventions, `service.name` among them.
    pub attributes: Attributes,
}

impl Resource {
    /// The value of `service.name`.
    pub fn service_name(&self) -> &str {
        self.attributes
            .iter()
            .find_map(|(key, value)| match value {
                Value::Str(name) if key == "service.name" => Some(name.as_ref()),
                _ => None,
            })
            .unwrap_or("unknown_service")
    }
}
