//! What `stream` does about TLS: plaintext in the place of records, and bytes
//! of sessions whose connection is not known yet.

use abi::record::{self, Data, Owner, TlsJoin};

use super::connection::{Held, State, Stream, TRIES_OLD};
use super::{Evidence, Progress, StreamStats, Streams};
use crate::protocol::Step;

/// TLS sessions of which bytes are held, and writes held of each: a request
/// head and a body in pieces.
const MAX_HELD_SESSIONS: usize = 4096;
const MAX_HELD: usize = 16;

impl Streams {
    /// Bytes were written to a TLS session whose connection is not known yet.
    pub fn hold(&mut self, data: &Data, bytes: &[u8]) {
        let session = (data.pid, data.conn);
        if !self.held.contains_key(&session) && self.held.len() >= MAX_HELD_SESSIONS {
            self.stats.unheld.one();
            return;
        }
        let held = self.held.entry(session).or_default();
        // What is not whole is found to be when the session is joined.
        if held.len() < MAX_HELD {
            held.push(Held {
                data: *data,
                bytes: bytes.to_vec(),
            });
        }
    }

    /// The connection of a TLS session is known, or its held bytes are of no
    /// use.
    pub fn join(&mut self, join: &TlsJoin, out: &mut Vec<Progress>) {
        let Some(held) = self.held.remove(&(join.pid, join.ssl)) else {
            return;
        };
        let mut end = 0;
        let mut whole = join.conn != 0;
        for Held { data, .. } in &held {
            whole &= data.offset == end;
            end = data.offset.saturating_add(data.len.into());
        }
        if !whole || end != join.held {
            self.stats.unheld.one();
            return;
        }
        for Held { mut data, bytes } in held {
            data.conn = join.conn;
            data.fd = join.fd;
            data.offset = data.offset.saturating_add(join.offset);
            self.data(&data, &bytes, out);
        }
    }
}

impl Stream {
    /// Bytes came out of a TLS session. Whatever the connection carried before
    /// the first of them is over: a proxy was asked for a tunnel, or records
    /// were not known as such.
    pub(super) fn unseal(
        &mut self,
        data: &Data,
        steps: &mut Vec<Step>,
        stats: &StreamStats,
        out: &mut Vec<Progress>,
    ) {
        if self.tls == [false; 2] {
            stats.tls.one();
            let before = std::mem::replace(
                &mut self.state,
                State::Doubt {
                    tries: TRIES_OLD,
                    run: None,
                    held: Vec::new(),
                },
            );
            match before {
                State::Known(mut parser) => {
                    parser.close(steps);
                    let evidence = Evidence {
                        owner: Owner::default(),
                        rule: record::rule::NONE,
                    };
                    let end = self.last[0].max(self.last[1]);
                    self.deliver(data.conn, steps, stats, data.at, end, evidence, out);
                    // Exchanges are numbered anew.
                    out.push(Progress::Closed { conn: data.conn });
                    self.current = None;
                    self.read = None;
                }
                State::Doubt { tries, run, .. } => {
                    self.state = State::Doubt {
                        tries,
                        run,
                        held: Vec::new(),
                    };
                }
                State::Muted { .. } => {}
            }
        }
        let way = usize::from(data.direction & 1);
        if let Some(tls @ false) = self.tls.get_mut(way) {
            *tls = true;
            // Records that were taken for something else were counted.
            self.next[way] = data.offset;
            self.base[way] = data.offset;
        }
    }
}
