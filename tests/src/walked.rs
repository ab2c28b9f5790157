//! Stacks as the kernel side told them, for the tests of the walk.

use abi::record::{Frame, Stack, Traceback, Value};
use otel_ebpf::source::Found;

/// A stack as it was told.
#[derive(Debug)]
pub struct Walked {
    /// Its record.
    pub stack: Stack,
    /// Innermost first.
    pub frames: Vec<Frame>,
    /// What its frames held.
    pub values: Vec<Told>,
    /// Whether bytes sent on its connection were told before it.
    pub late: bool,
}

/// A value as it was told.
#[derive(Debug)]
pub struct Told {
    /// Its record.
    pub value: Value,
    /// Of a text.
    pub text: Option<String>,
    /// Of an `int`.
    pub number: Option<i64>,
    /// Of a `float`.
    pub float: Option<f64>,
    /// Of an exception.
    pub traceback: Vec<Traceback>,
}

impl Told {
    /// What follows the record.
    pub fn new(found: &Found<'_>) -> Self {
        Self {
            value: found.value,
            text: found.text(),
            number: found.int(),
            float: found.float(),
            traceback: found.traceback().collect(),
        }
    }
}

impl Walked {
    /// The code objects of its frames.
    pub fn codes(&self) -> Vec<u64> {
        self.frames.iter().map(|frame| frame.code).collect()
    }

    /// The values that one recipe gave, in order.
    pub fn of(&self, recipe: u32) -> Vec<&Told> {
        let of = |told: &&Told| told.value.recipe == recipe;
        self.values.iter().filter(of).collect()
    }

    /// The only value that one recipe gave.
    pub fn one(&self, recipe: u32) -> &Told {
        match self.of(recipe)[..] {
            [told] => told,
            ref other => panic!("recipe {recipe} gave {other:?}"),
        }
    }
}
