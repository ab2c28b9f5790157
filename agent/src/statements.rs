//! Statements of databases that are a part of a traced process: from their
//! begin and their end to exchanges.
//!
//! They take the way of the exchanges of a connection from here on; each has
//! an id of its own in the place of a connection's. No I/O, no clock.

use std::collections::{HashMap, VecDeque};

use abi::record::{Query, QueryEnd, query_flag, query_part};

use crate::protocol::{Role, sqlite};
use crate::stats::counters;
use crate::stream::{Evidence, ExchangeId, Progress};

/// Statements that run, or have rows left, at a time; the oldest are given up.
const MAX_OPEN: usize = 16_384;
/// Calls that may run more statements; beyond that all of them are taken to be
/// over.
const MAX_BATCHES: usize = 4096;
/// After how many nanoseconds without a statement such a call is over: twice
/// what the kernel side waits for before it tells of the next as of a new one.
const QUIET: u64 = 10_000_000_000;
/// After how many nanoseconds the end of a call's last statement, which another
/// greenlet has interrupted, is taken to be lost.
const LATE: u64 = 60_000_000_000;
/// Bytes of a script's text that are kept: as many as of a statement.
const MAX_TEXT: usize = 4096;

counters! {
    /// Counters of `statements`.
    pub struct StatementStats {
        /// Statements that ended.
        ended => "statements.ended",
        /// Calls that ran several, each of which is one span.
        batches => "statements.batches",
        /// Calls that may run several and were seen to have returned.
        returned => "statements.returned",
        /// Statements of which nothing can be told, or that the library ran
        /// for itself.
        left_out => "statements.left_out",
        /// Statements whose end was not seen, given up for want of room.
        given_up => "statements.dropped.too_many",
        /// Statements that had not ended when their process did.
        cut_off => "statements.cut_off",
        /// Statements whose end was lost on the way to the agent.
        ends_lost => "statements.ends_lost",
        /// Ends of statements whose begin was not seen.
        orphans => "statements.orphans",
    }
}

/// A thread: process and thread id.
type Thread = (u32, u32);

/// Every statement that has begun and not ended.
#[derive(Default)]
pub struct Statements {
    /// Whose, by id.
    open: HashMap<u64, Thread>,
    /// Ids, oldest first; some have ended.
    order: VecDeque<u64>,
    /// Calls that may run more, by id.
    batches: HashMap<u64, Batch>,
    /// The call that a thread is in.
    calls: HashMap<Thread, u64>,
    /// What became of them.
    pub stats: StatementStats,
}

/// What a call has run so far.
struct Batch {
    thread: Thread,
    size: u64,
    /// Of the first statement and, in a script, of the others.
    text: Vec<u8>,
    /// Whether the others have texts of their own.
    script: bool,
    file: Vec<u8>,
    in_memory: bool,
    rows: Option<u64>,
    code: i32,
    /// When the last one ended.
    last: u64,
    /// Another one runs.
    running: bool,
    /// Since when nothing comes after what runs.
    over: Option<u64>,
    /// There were more statements than is known.
    incomplete: bool,
}

impl Statements {
    /// A statement began.
    pub fn begin(&mut self, query: &Query, out: &mut Vec<Progress>) {
        if query.part == query_part::FURTHER {
            if let Some(batch) = self.batches.get_mut(&query.id) {
                batch.running = true;
            }
            return;
        }
        let thread = (query.pid, query.tid);
        // The call that the thread was in is over, unless it may go on: what
        // does not compile may be asked for by what gives its rows.
        if matches!(query.part, query_part::SINGLE | query_part::FIRST)
            && let Some(id) = self.calls.remove(&thread)
        {
            match self.batches.get_mut(&id) {
                // Greenlets take turns on the thread, and this one's has more
                // to come.
                Some(batch) if batch.running => batch.over = Some(query.at),
                _ => self.close(id, out),
            }
        }
        if self.order.len() >= MAX_OPEN {
            self.tidy(out);
        }
        self.open.insert(query.id, thread);
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
        let id = end.id;
        if end.flags & query_flag::OVER != 0 {
            return self.over(id, u64::from(end.rows), out);
        }
        let void = end.flags & query_flag::VOID != 0;
        let nameless = end.flags & query_flag::NAMELESS != 0;
        let name = if nameless { &[] } else { name };
        let rows = (end.columns != 0).then(|| u64::from(end.rows));
        if let Some(batch) = self.batches.get_mut(&id) {
            batch.running = false;
            let over = batch.over.is_some() || end.code != 0;
            if void {
                // The kernel side goes on under another id.
                self.stats.left_out.one();
            } else {
                self.stats.ended.one();
                batch.add(end, text, rows);
            }
            if over {
                self.close(id, out);
            }
            return;
        }
        let Some(thread) = self.open.remove(&id) else {
            self.stats.orphans.one();
            return;
        };
        if void || sqlite::is_internal(text) {
            self.stats.left_out.one();
            out.push(Progress::Abandon { id: named(id) });
            out.push(Progress::Unclaimed { conn: id });
            return;
        }
        self.stats.ended.one();
        if end.flags & query_flag::PART != 0 && end.code == 0 {
            if self.batches.len() >= MAX_BATCHES {
                self.flush(out);
            }
            let batch = Batch {
                thread,
                size: 1,
                text: text.to_vec(),
                script: false,
                file: name.to_vec(),
                in_memory: end.flags & query_flag::IN_MEMORY != 0,
                rows,
                code: 0,
                last: end.at,
                running: false,
                over: None,
                incomplete: false,
            };
            self.batches.insert(id, batch);
            self.calls.insert(thread, id);
            return;
        }
        let result = sqlite::exchange(&sqlite::Outcome {
            text,
            file: name,
            in_memory: end.flags & query_flag::IN_MEMORY != 0,
            rows,
            code: end.code,
            batch: None,
            script: false,
        });
        out.push(Progress::End {
            id: named(id),
            at: end.at,
            result,
        });
    }

    /// A call has returned, of which `ran` statements have ended.
    fn over(&mut self, id: u64, ran: u64, out: &mut Vec<Progress>) {
        if let Some(batch) = self.batches.get_mut(&id) {
            self.stats.returned.one();
            // No other records come late: what is missing was lost.
            self.stats.ends_lost.add(ran.saturating_sub(batch.size));
            batch.size = batch.size.max(ran);
            return self.close(id, out);
        }
        if self.open.remove(&id).is_some() {
            self.stats.ends_lost.add(ran.max(1));
            out.push(Progress::Abandon { id: named(id) });
        }
    }

    /// Everything that ended before `now`, in monotonic nanoseconds, was told:
    /// calls that have run nothing for long are over.
    pub fn quiet(&mut self, now: u64, out: &mut Vec<Progress>) {
        for batch in self.batches.values_mut() {
            let late = batch.over.is_some_and(|at| now.saturating_sub(at) > LATE);
            if batch.running && late {
                batch.running = false;
                batch.incomplete = true;
                self.stats.ends_lost.one();
            }
        }
        self.close_all(out, |batch| {
            !batch.running && now.saturating_sub(batch.last) > QUIET
        });
    }

    /// No call runs more.
    pub fn flush(&mut self, out: &mut Vec<Progress>) {
        self.close_all(out, |_| true);
    }

    /// A process is gone, and its statements with it.
    pub fn exit(&mut self, pid: u32, out: &mut Vec<Progress>) {
        self.close_all(out, |batch| batch.thread.0 == pid);
        let mut gone: Vec<u64> = self
            .open
            .iter()
            .filter(|&(_, &(of, _))| of == pid)
            .map(|(&id, _)| id)
            .collect();
        gone.sort_unstable();
        for id in gone {
            self.open.remove(&id);
            self.stats.cut_off.one();
            out.push(Progress::Abandon { id: named(id) });
        }
    }

    fn close_all(&mut self, out: &mut Vec<Progress>, over: impl Fn(&Batch) -> bool) {
        if self.batches.is_empty() {
            return;
        }
        let batches = self.batches.iter().filter(|(_, batch)| over(batch));
        let mut ids: Vec<u64> = batches.map(|(&id, _)| id).collect();
        ids.sort_unstable();
        for id in ids {
            self.close(id, out);
        }
    }

    /// A call is over.
    fn close(&mut self, id: u64, out: &mut Vec<Progress>) {
        let Some(batch) = self.batches.remove(&id) else {
            return;
        };
        if self.calls.get(&batch.thread) == Some(&id) {
            self.calls.remove(&batch.thread);
        }
        let several = batch.size > 1 || batch.incomplete;
        if several {
            self.stats.batches.one();
        }
        // None is better than a wrong one.
        let size = Some(batch.size).filter(|_| several && !batch.incomplete);
        let result = sqlite::exchange(&sqlite::Outcome {
            text: &batch.text,
            file: &batch.file,
            in_memory: batch.in_memory,
            // A script's rows reach nobody.
            rows: batch.rows.filter(|_| !batch.script),
            code: batch.code,
            batch: size,
            script: batch.script,
        });
        out.push(Progress::End {
            id: named(id),
            at: batch.last,
            result,
        });
    }

    /// Makes room: forgets what has ended, and half of the rest if that is too
    /// much.
    fn tidy(&mut self, out: &mut Vec<Progress>) {
        let Self {
            open, order, stats, ..
        } = self;
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

impl Batch {
    /// Another statement of the call has ended.
    fn add(&mut self, end: &QueryEnd, text: &[u8], rows: Option<u64>) {
        self.size += 1;
        self.last = end.at;
        self.code = end.code;
        if let (Some(sum), Some(rows)) = (&mut self.rows, rows) {
            *sum = sum.saturating_add(rows);
        }
        if text.is_empty() {
            return;
        }
        self.script = true;
        let text = text.trim_ascii();
        if self.text.len() + text.len() + 2 > MAX_TEXT {
            return;
        }
        let end = self.text.trim_ascii_end().len();
        self.text.truncate(end);
        let between: &[u8] = if self.text.ends_with(b";") {
            b" "
        } else {
            b"; "
        };
        self.text.extend_from_slice(between);
        self.text.extend_from_slice(text);
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
            part: query_part::SINGLE,
            pad: 0,
            pid: 7,
            tid: 8,
            pad2: 0,
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

    /// A statement of a call, and its end.
    fn first(id: u64) -> (Query, QueryEnd) {
        let query = Query {
            part: query_part::FIRST,
            ..query(id)
        };
        (query, part(id, 200))
    }

    fn part(id: u64, at: u64) -> QueryEnd {
        QueryEnd {
            flags: query_flag::IN_MEMORY | query_flag::PART,
            columns: 0,
            at,
            ..end(id)
        }
    }

    /// The only exchange that has ended, with `db.operation.batch.size`.
    fn ended(out: &[Progress]) -> (u64, String, Option<i64>) {
        let mut ends = out.iter().filter_map(|progress| match progress {
            Progress::End { at, result, .. } => Some((at, result)),
            _ => None,
        });
        let (&at, result) = ends.next().expect("an end");
        assert!(ends.next().is_none());
        let mut size = None;
        for (key, value) in &result.attributes {
            if let ("db.operation.batch.size", crate::attribute::Value::Int(count)) =
                (&**key, value)
            {
                size = Some(*count);
            }
        }
        let text = result.statement().unwrap_or_default();
        (at, text.to_owned(), size)
    }

    #[test]
    fn a_call_that_runs_a_statement_many_times_is_one_exchange() {
        let mut statements = Statements::default();
        let mut out = Vec::new();
        let (begin, end) = first(9);
        statements.begin(&begin, &mut out);
        statements.end(&end, b"", b"insert into t values (?)", &mut out);
        for at in 201..300 {
            statements.end(&part(9, at), b"", b"", &mut out);
        }
        // What something else runs on the way does not end it.
        let inside = Query {
            part: query_part::INSIDE,
            ..query(10)
        };
        statements.begin(&inside, &mut out);
        statements.quiet(300 + QUIET - 2, &mut out);
        assert_eq!(out.len(), 2, "{out:?}");
        // The next statement of the thread does.
        statements.begin(&query(11), &mut out);
        let text = "insert into t values (?)".to_owned();
        assert_eq!(ended(&out), (299, text, Some(100)));
        assert_eq!(statements.stats.batches.value(), 1);
    }

    #[test]
    fn a_script_is_one_exchange_with_all_its_texts() {
        let mut statements = Statements::default();
        let mut out = Vec::new();
        let (begin, end) = first(9);
        statements.begin(&begin, &mut out);
        statements.end(&end, b"", b"create table t (a);", &mut out);
        let further = Query {
            part: query_part::FURTHER,
            ..query(9)
        };
        statements.begin(&further, &mut out);
        // It runs for long.
        statements.quiet(u64::MAX, &mut out);
        statements.end(
            &part(9, 250),
            b"",
            b"\n insert into t values ('x')",
            &mut out,
        );
        statements.quiet(250 + QUIET + 1, &mut out);
        let text = "create table t (a); insert into t values (?)".to_owned();
        assert_eq!(ended(&out), (250, text, Some(2)));
    }

    #[test]
    fn a_script_that_another_greenlet_interrupts_has_all_its_statements() {
        let mut statements = Statements::default();
        let mut out = Vec::new();
        let (begin, end) = first(9);
        statements.begin(&begin, &mut out);
        statements.end(&end, b"", b"select 1;", &mut out);
        let further = Query {
            part: query_part::FURTHER,
            ..query(9)
        };
        statements.begin(&further, &mut out);
        // On the same thread.
        statements.begin(&query(10), &mut out);
        assert_eq!(out.len(), 2, "{out:?}");
        statements.end(&part(9, 250), b"", b"select 2", &mut out);
        let text = "select ?; select ?".to_owned();
        assert_eq!(ended(&out), (250, text, Some(2)));
        assert!(statements.batches.is_empty() && statements.calls.is_empty());
    }

    #[test]
    fn an_interrupted_call_whose_last_end_is_lost_is_told_without_its_size() {
        let mut statements = Statements::default();
        let mut out = Vec::new();
        let (begin, end) = first(9);
        statements.begin(&begin, &mut out);
        statements.end(&end, b"", b"insert into t values (?)", &mut out);
        statements.end(&part(9, 250), b"", b"", &mut out);
        let further = Query {
            part: query_part::FURTHER,
            ..query(9)
        };
        statements.begin(&further, &mut out);
        let other = Query {
            at: 300,
            ..query(10)
        };
        statements.begin(&other, &mut out);
        statements.quiet(300 + LATE, &mut out);
        assert_eq!(out.len(), 2, "{out:?}");
        statements.quiet(301 + LATE, &mut out);
        let text = "insert into t values (?)".to_owned();
        assert_eq!(ended(&out), (250, text, None));
        assert_eq!(statements.stats.ends_lost.value(), 1);
        assert_eq!(statements.stats.batches.value(), 1);
        assert!(statements.batches.is_empty() && statements.calls.is_empty());
        // Had it only been late, it is counted as well.
        statements.end(&part(9, 900), b"", b"", &mut out);
        assert_eq!(statements.stats.orphans.value(), 1);
    }

    #[test]
    fn a_call_that_is_said_to_be_over_ends_when_its_last_statement_did() {
        let over = |ran| QueryEnd {
            flags: query_flag::OVER,
            rows: ran,
            ..part(9, 900)
        };
        let mut statements = Statements::default();
        let mut out = Vec::new();
        let (begin, end) = first(9);
        statements.begin(&begin, &mut out);
        statements.end(&end, b"", b"delete from t", &mut out);
        statements.end(&part(9, 250), b"", b"", &mut out);
        // What does not compile says nothing of it.
        let failed = Query {
            part: query_part::FAILED,
            ..query(10)
        };
        statements.begin(&failed, &mut out);
        statements.end(&over(2), b"", b"", &mut out);
        assert_eq!(ended(&out), (250, "delete from t".to_owned(), Some(2)));
        assert!(statements.batches.is_empty() && statements.calls.is_empty());
        assert_eq!(statements.stats.ends_lost.value(), 0);
        // Nothing else comes of it.
        statements.end(&over(2), b"", b"", &mut out);
        assert_eq!(out.len(), 3, "{out:?}");

        // Some of its records are lost: of the last statement's end.
        out.clear();
        let (begin, end) = first(9);
        statements.begin(&begin, &mut out);
        statements.end(&end, b"", b"delete from t", &mut out);
        let further = Query {
            part: query_part::FURTHER,
            ..query(9)
        };
        statements.begin(&further, &mut out);
        statements.end(&over(5), b"", b"", &mut out);
        assert_eq!(ended(&out), (200, "delete from t".to_owned(), Some(5)));
        assert_eq!(statements.stats.ends_lost.value(), 4);
        // All of them.
        out.clear();
        statements.begin(&begin, &mut out);
        statements.end(&over(1), b"", b"", &mut out);
        assert!(matches!(out[1], Progress::Abandon { id } if id.conn == 9));
        assert_eq!(statements.stats.ends_lost.value(), 5);
    }

    #[test]
    fn a_call_ends_with_its_failure_with_its_process_and_with_the_trace() {
        let finish: [fn(&mut Statements, &mut Vec<Progress>); 3] = [
            |statements, out| {
                let failed = QueryEnd {
                    code: 19,
                    ..part(9, 200)
                };
                statements.end(&failed, b"", b"", out);
            },
            |statements, out| statements.exit(7, out),
            Statements::flush,
        ];
        for (finish, size) in finish.into_iter().zip([Some(2), None, None]) {
            let mut statements = Statements::default();
            let mut out = Vec::new();
            let (begin, end) = first(9);
            statements.begin(&begin, &mut out);
            statements.end(&end, b"", b"delete from t", &mut out);
            finish(&mut statements, &mut out);
            assert_eq!(ended(&out), (200, "delete from t".to_owned(), size));
            assert!(statements.batches.is_empty() && statements.calls.is_empty());
        }
    }
}
