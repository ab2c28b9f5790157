//! What the client has sent and the server has not answered: series of
//! messages, and how far each direction was read.

use std::collections::VecDeque;

use super::ending::{Ending, TAIL};
use super::message::Frames;
use super::operation::Pending;

/// One direction.
#[derive(Debug, Default)]
pub(super) struct Half {
    pub(super) frames: Frames,
    /// Bytes before the current ones.
    pub(super) offset: u64,
    /// Where the message under way began.
    pub(super) begun: u64,
    /// The last bytes, while nobody knows what they belong to.
    pub(super) tail: VecDeque<u8>,
    /// Bytes are missing of which not even the last are known.
    pub(super) blind: bool,
}

/// Messages up to a `Sync`, or one that is answered as if it were.
#[derive(Debug, Default)]
pub(super) struct Group {
    pub(super) kind: GroupKind,
    pub(super) pending: VecDeque<Pending>,
    /// Its last message was sent.
    pub(super) complete: bool,
    /// The server skips what is left of it.
    pub(super) failed: bool,
    /// Some of its messages were not seen.
    pub(super) uncertain: bool,
    /// What follows was sent on behalf of another than what came before.
    pub(super) divided: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum GroupKind {
    /// Start-up and authentication.
    Startup,
    /// A query, or a function call.
    Simple,
    #[default]
    Extended,
}

impl Group {
    /// The exchange that the server is at: the first that is not answered.
    pub(super) fn current(&mut self) -> Option<&mut Pending> {
        let last = self.pending.len().checked_sub(1)?;
        let index = self
            .pending
            .iter()
            .position(|pending| pending.failure.is_none() && !pending.is_answered())
            .unwrap_or(last);
        self.pending.get_mut(index)
    }
}

impl Group {
    /// Whether the number of rows at the end of its answer, of which messages
    /// were not seen, is certain to be that of its only execution.
    pub(super) fn ends_with(&self, ending: Ending) -> bool {
        let (Some(pending), 1) = (self.pending.front(), self.pending.len()) else {
            return false;
        };
        let single = match (self.kind, &pending.statement) {
            (GroupKind::Extended, _) => true,
            (GroupKind::Simple, Some(statement)) => statement.is_single(),
            _ => false,
        };
        // Rows that came tell apart what only makes a table of them.
        let came = pending
            .rows
            .is_some_and(|seen| 0 < seen && seen <= ending.rows);
        single
            && came
            && !self.uncertain
            && !self.failed
            && pending.failure.is_none()
            && (pending.executions, pending.completed) == (1, 0)
            && ending.is_certain(pending.columns)
    }
}

impl Half {
    /// Keeps the last bytes.
    pub(super) fn note(&mut self, bytes: &[u8]) {
        let from = bytes.len().saturating_sub(TAIL);
        self.tail.extend(bytes.get(from..).unwrap_or_default());
        while self.tail.len() > TAIL {
            self.tail.pop_front();
        }
    }

    pub(super) fn resume(&mut self) {
        self.frames.resume();
        self.tail.clear();
        self.blind = false;
    }
}
