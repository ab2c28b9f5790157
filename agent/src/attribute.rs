//! Attribute keys and values as OpenTelemetry has them, without OTLP.
//!
//! Protocols and resources produce them; `signal` translates them.

use std::borrow::Cow;

/// An attribute key; nearly always a constant of the semantic conventions.
pub type Key = Cow<'static, str>;

/// An attribute value (specification, Common: Attribute).
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A string.
    Str(Cow<'static, str>),
    /// A signed integer.
    Int(i64),
    /// A double.
    Double(f64),
    /// A boolean.
    Bool(bool),
    /// An array of strings.
    StrArray(Vec<String>),
}

/// Attributes in the order in which they were found; keys are unique.
pub type Attributes = Vec<(Key, Value)>;

impl From<&'static str> for Value {
    fn from(text: &'static str) -> Self {
        Self::Str(Cow::Borrowed(text))
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Str(Cow::Owned(text))
    }
}

impl From<i64> for Value {
    fn from(number: i64) -> Self {
        Self::Int(number)
    }
}

impl From<bool> for Value {
    fn from(flag: bool) -> Self {
        Self::Bool(flag)
    }
}
