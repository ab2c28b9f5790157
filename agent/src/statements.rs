//! Statements of databases that are a part of a traced process: from their
//! begin and their end to exchanges.
//!
//! They take the way of the exchanges of a connection from here on; each has
//! an id of its own in the place of a connection's. No I/O, no clock.

use std::collections::{HashMap, VecDeque};

use abi::record::{Query, QueryEnd, query_flag};

use crate::protocol::{Role, sqlite};
use crate::stats::counters;
use crate::stream::{Evidence, ExchangeId, Progress};

/// Statements that run, or have rows left, at a time; the oldest are given up.
const MAX_OPEN: usize = 16_384;

counters! {
    /// Counters of `statements`.
    pub struct StatementStats {
        /// Statements that ended.
        ended => "statements.ended",
        /// Statements of which nothing can be told, or that the library ran
        /// for itself.
        left_out => "statements.left_out",
        /// Statements whose end was not seen, given up for want of room.
        given_up => "statements.dropped.too_many",
        /// Statements that had not ended when their process did.
        cut_off => "statements.cut_off",
        /// Ends of statements whose begin was not seen.
        orphans => "statements.orphans",
    }
}

/// Every statement that has begun and not ended.
#[derive(Default)]
pub struct Statements {
    /// Process, by id.
    open: HashMap<u64, u32>,
    /// Ids, oldest first; some have ended.
    order: VecDeque<u64>,
    /// What became of them.
    pub stats: StatementStats,
}

impl Statements {
    /// A statement began.
    pub fn begin(&mut self, query: &Query, out: &mut Vec<Progress>) {
        if self.order.len() >= MAX_OPEN {
            self.tidy(out);
        }
        self.open.insert(query.id, query.pid);
        self.order.push_back(query.id);
        out.push(Progress::Begin {
            id: named(query.id),
            pid: query.pid,
            role: Role::Client,
            at: query.at,
            evidence: Evidence {
                owner: query.owner,
                rule: query.rule,
            },
        });
    }

    /// A statement ended.
    pub fn end(&mut self, end: &QueryEnd, name: &[u8], text: &[u8], out: &mut Vec<Progress>) {
        if self.open.remove(&end.id).is_none() {
            self.stats.orphans.one();
            return;
        }
        let id = named(end.id);
        if end.flags & query_flag::VOID != 0 || sqlite::is_internal(text) {
            self.stats.left_out.one();
            out.push(Progress::Abandon { id });
            out.push(Progress::Unclaimed { conn: end.id });
            return;
        }
        self.stats.ended.one();
        let nameless = end.flags & query_flag::NAMELESS != 0;
        let result = sqlite::exchange(&sqlite::Outcome {
            text,
            file: if nameless { &[] } else { name },
            in_memory: end.flags & query_flag::IN_MEMORY != 0,
            rows: (end.columns != 0).then(|| end.rows.into()),
            code: end.code,
        });
        out.push(Progress::End {
            id,
            at: end.at,
            result,
        });
    }

    /// A process is gone, and its statements with it.
    pub fn exit(&mut self, pid: u32, out: &mut Vec<Progress>) {
        let mut gone: Vec<u64> = self
            .open
            .iter()
            .filter(|&(_, &of)| of == pid)
            .map(|(&id, _)| id)
            .collect();
        gone.sort_unstable();
        for id in gone {
            self.open.remove(&id);
            self.stats.cut_off.one();
            out.push(Progress::Abandon { id: named(id) });
        }
    }

    /// Makes room: forgets what has ended, and half of the rest if that is too
    /// much.
    fn tidy(&mut self, out: &mut Vec<Progress>) {
        let Self { open, order, stats } = self;
        order.retain(|id| open.contains_key(id));
        if order.len() < MAX_OPEN / 2 {
            return;
        }
        for id in order.drain(..MAX_OPEN / 4) {
            open.remove(&id);
            stats.given_up.one();
            out.push(Progress::Abandon { id: named(id) });
        }
    }
}

/// The exchange that a statement is.
fn named(id: u64) -> ExchangeId {
    ExchangeId {
        conn: id,
        number: 0,
    }
}

#[cfg(test)]
mod tests {
    use abi::record::{Owner, kind};

    use super::*;

    fn query(id: u64) -> Query {
        Query {
            kind: kind::QUERY,
            rule: 1,
            pad: [0; 2],
            pid: 7,
            id,
            at: 100,
            owner: Owner { conn: 5, offset: 6 },
        }
    }

    fn end(id: u64) -> QueryEnd {
        QueryEnd {
            kind: kind::QUERY_END,
            flags: query_flag::IN_MEMORY,
            columns: 1,
            pad: 0,
            pid: 7,
            id,
            at: 200,
            rows: 3,
            code: 0,
            name_len: 0,
            text_len: 0,
        }
    }

    #[test]
    fn a_statement_is_an_exchange_of_its_own() {
        let mut statements = Statements::default();
        let mut out = Vec::new();
        statements.begin(&query(9), &mut out);
        statements.end(&end(9), b"", b"select 1", &mut out);
        statements.end(&end(9), b"", b"select 1", &mut out);
        assert_eq!(out.len(), 2, "{out:?}");
        assert!(matches!(
            &out[0],
            Progress::Begin { id, pid: 7, at: 100, evidence, .. }
                if id.conn == 9 && evidence.owner.conn == 5
        ));
        assert!(matches!(&out[1], Progress::End { id, at: 200, .. } if id.conn == 9));
        assert_eq!(statements.stats.orphans.value(), 1);
    }

    #[test]
    fn what_does_not_end_is_given_up() {
        let mut statements = Statements::default();
        let mut out = Vec::new();
        statements.begin(&query(1), &mut out);
        statements.exit(8, &mut out);
        statements.exit(7, &mut out);
        assert!(matches!(&out[1], Progress::Abandon { id } if id.conn == 1));
        assert_eq!(statements.stats.cut_off.value(), 1);
        out.clear();
        for id in 0..=(MAX_OPEN as u64) {
            statements.begin(&query(id), &mut out);
        }
        let quarter = (MAX_OPEN / 4) as u64;
        assert_eq!(statements.stats.given_up.value(), quarter);
        assert!(statements.open.len() <= MAX_OPEN);
    }
}
