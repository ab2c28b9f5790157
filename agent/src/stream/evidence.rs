//! Whose the bytes of a transfer are: on whose behalf the kernel side saw them
//! sent, and to which exchange they belong.

use abi::record::{Data, Owner};

use crate::protocol::Step;

/// What the kernel side knew when bytes were transferred.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Evidence {
    /// Whose bytes they are.
    pub owner: Owner,
    /// See `abi::record::rule`.
    pub rule: u8,
}

/// What is known of a transfer, which may come in several records.
#[derive(Clone, Copy)]
pub(super) struct Read {
    /// Thread and time: the same in all records of one transfer.
    call: (u32, u64),
    pub(super) from: u64,
    pub(super) exchange: Option<u64>,
    pub(super) completes_head: bool,
}

impl Read {
    /// The transfer that a record belongs to: its buffers are records of
    /// their own, but they have one owner. `before` is the record before.
    pub(super) fn of(data: &Data, gap: bool, touched: &Touched, before: Option<Self>) -> Self {
        let mut read = Self {
            call: (data.tid, data.at),
            from: data.offset,
            exchange: touched.exchange(),
            completes_head: touched.completes_head,
        };
        if let Some(before) = before.filter(|before| before.call == read.call) {
            read.from = before.from;
            if gap || before.exchange != read.exchange {
                read.exchange = None;
            }
            read.completes_head |= before.completes_head;
        }
        read
    }
}

/// Which exchanges the bytes of one transfer belong to.
pub(super) struct Touched {
    pub(super) exchange: Option<u64>,
    several: bool,
    completes_head: bool,
}

impl Touched {
    pub(super) fn new(current: Option<u64>) -> Self {
        Self {
            exchange: current,
            several: false,
            completes_head: false,
        }
    }

    /// Takes a step into account; `from` is where the parser counts the
    /// transfer's first byte.
    pub(super) fn step(&mut self, step: &Step, from: u64) {
        match *step {
            Step::Begin { exchange, offset } => {
                // An earlier exchange has none of these bytes if the new one
                // begins with the first of them.
                if offset != from {
                    self.several = true;
                }
                self.exchange = Some(exchange);
            }
            Step::Head { .. } => self.completes_head = true,
            Step::Abandon { exchange, .. } if self.exchange == Some(exchange) => {
                self.exchange = None;
            }
            _ => {}
        }
    }

    fn exchange(&self) -> Option<u64> {
        if self.several { None } else { self.exchange }
    }
}
