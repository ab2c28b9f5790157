//! Counts what the tables that evict have evicted.
//!
//! The kernel does not tell. But the kernel side keeps how many entries it has
//! made less those that it has removed (`ebpf/src/evicting.rs`), and what is
//! not there of these was evicted.

use abi::counter::Evicting;
use aya::maps::{HashMap, Map, MapData, PerCpuArray};
use aya::{Ebpf, Pod};

use super::{ProbeError, map};

/// Tables that evict the least used, which costs a parent, a join, a span of
/// SQLite or what a TLS session transfers, and never gives a wrong parent.
const EVICTING: [&str; 7] = [
    "MUTED",
    "CONTEXTS",
    "GREENLETS",
    "WORK",
    "SESSIONS",
    "RECORDS",
    "STATEMENTS",
];
/// The table of threads, which evicts nothing.
const THREADS: &str = "THREADS";

/// Room in tables that is not as they have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableEntries {
    /// One of them; otherwise all that evict, and that of threads.
    table: Option<&'static str>,
    /// How many entries.
    pub(super) entries: u32,
}

impl TableEntries {
    /// Reads `ENTRIES` or `TABLE=ENTRIES`.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (table, entries) = match text.split_once('=') {
            Some((table, entries)) => (Some(table), entries),
            None => (None, text),
        };
        let table = table.map(|name| {
            let known = sized().find(|known| *known == name);
            known.ok_or_else(|| format!("there is no table {name} with room to set"))
        });
        match entries.parse() {
            Ok(entries @ 1..) => Ok(Self {
                table: table.transpose()?,
                entries,
            }),
            _ => Err("it must be a number of entries, one at least".to_owned()),
        }
    }

    /// Those that have this room.
    pub(super) fn tables(self) -> impl Iterator<Item = &'static str> {
        sized().filter(move |name| self.table.is_none_or(|table| table == *name))
    }
}

/// The tables whose room can be set.
fn sized() -> impl Iterator<Item = &'static str> {
    EVICTING.into_iter().chain([THREADS])
}

/// The tables that evict, and what they should hold.
pub(super) struct Evictions {
    tables: Vec<Table>,
    held: PerCpuArray<MapData, u64>,
    muted: HashMap<MapData, u64, u8>,
    /// Entries that were made in `muted`; none is removed.
    muted_held: u64,
    muted_capacity: u64,
}

/// A table that the kernel side writes.
struct Table {
    table: Evicting,
    counter: &'static str,
    capacity: u64,
    /// How many entries it has, counted one by one.
    count: Box<dyn Fn() -> u64 + Send>,
}

impl Evictions {
    /// Takes the tables.
    pub(super) fn open(ebpf: &mut Ebpf) -> Result<Self, ProbeError> {
        use Evicting::{Contexts, Greenlets, Records, Sessions, Statements, Work};
        // With the sizes of keys and values, which are the kernel side's own.
        let tables = vec![
            table::<16, 40>(ebpf, Contexts, "CONTEXTS", "kernel.evicted.contexts")?,
            table::<16, 32>(ebpf, Greenlets, "GREENLETS", "kernel.evicted.greenlets")?,
            table::<16, 32>(ebpf, Work, "WORK", "kernel.evicted.work")?,
            table::<16, 40>(ebpf, Sessions, "SESSIONS", "kernel.evicted.tls_sessions")?,
            table::<72, 24>(ebpf, Records, "RECORDS", "kernel.evicted.tls_records")?,
            table::<16, 24>(ebpf, Statements, "STATEMENTS", "kernel.evicted.statements")?,
        ];
        let (muted, muted_capacity) = take(ebpf, "MUTED")?;
        Ok(Self {
            tables,
            held: map(ebpf, "HELD")?,
            muted,
            muted_held: 0,
            muted_capacity,
        })
    }

    /// Notes a connection of no interest.
    pub(super) fn mute(&mut self, conn: u64) {
        /// `BPF_NOEXIST`: one that is there is not counted again.
        const NO_EXIST: u64 = 1;
        if self.muted.insert(conn, 1, NO_EXIST).is_ok() {
            self.muted_held += 1;
        }
    }

    /// How many entries of each table were evicted. While the kernel side
    /// writes they cannot be counted, so that it is as many at least: what
    /// exceeds the table's room. Once it is `settled`, it is exact.
    pub(super) fn counters(&self, settled: bool) -> Vec<(&'static str, u64)> {
        let held = |table: Evicting| {
            let held = self.held.get(&(table as u32), 0);
            // On one processor more may have been removed than made.
            let sum = held.map_or(0, |held| {
                held.iter().fold(0, |a: u64, b| a.wrapping_add(*b))
            });
            // Whatever cannot be is taken for nothing.
            if sum > u64::MAX / 2 { 0 } else { sum }
        };
        let muted = match settled {
            true => keys(&self.muted, self.muted_capacity),
            false => self.muted_capacity,
        };
        let tables = self.tables.iter().map(|table| {
            let there = match settled {
                true => (table.count)(),
                false => table.capacity,
            };
            (table.counter, held(table.table).saturating_sub(there))
        });
        tables
            .chain([(
                "kernel.evicted.muted",
                self.muted_held.saturating_sub(muted),
            )])
            .collect()
    }
}

fn table<const K: usize, const V: usize>(
    ebpf: &mut Ebpf,
    table: Evicting,
    name: &'static str,
    counter: &'static str,
) -> Result<Table, ProbeError> {
    let (map, capacity) = take::<[u8; K], [u8; V]>(ebpf, name)?;
    Ok(Table {
        table,
        counter,
        capacity,
        count: Box::new(move || keys(&map, capacity)),
    })
}

/// A table and how many entries it has room for.
fn take<K: Pod, V: Pod>(
    ebpf: &mut Ebpf,
    name: &'static str,
) -> Result<(HashMap<MapData, K, V>, u64), ProbeError> {
    let missing = || ProbeError::Missing(format!("table {name}"));
    let failed = |source| ProbeError::Map { name, source };
    let map = ebpf.take_map(name).ok_or_else(missing)?;
    let Map::LruHashMap(data) = &map else {
        return Err(missing());
    };
    let info = data.info().map_err(failed)?;
    let capacity = info.max_entries().into();
    Ok((map.try_into().map_err(failed)?, capacity))
}

/// The entries of a table, at most as many as it has room for.
fn keys<K: Pod, V: Pod>(map: &HashMap<MapData, K, V>, capacity: u64) -> u64 {
    let keys = map.keys().take_while(Result::is_ok);
    keys.take(usize::try_from(capacity).unwrap_or(usize::MAX))
        .count() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_set_in_one_table_or_in_all() {
        let tables = |text| {
            let room = TableEntries::parse(text).unwrap();
            assert_eq!(room.entries, 64);
            room.tables().collect::<Vec<_>>()
        };
        assert_eq!(tables("64").len(), EVICTING.len() + 1);
        assert_eq!(tables("RECORDS=64"), ["RECORDS"]);
        for wrong in ["", "0", "-1", "EVENTS=64", "RECORDS=", "=64", "RECORDS=0"] {
            assert!(TableEntries::parse(wrong).is_err(), "{wrong:?}");
        }
    }
}
