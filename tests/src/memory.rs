//! Recorded memory of Python processes, and what a reader says of it.
//!
//! A recording holds the bytes that one reading of `tests/apps/objects.py`
//! touched, so that the same reading can be done again without the process,
//! and with the bytes damaged. The format, all numbers little-endian:
//!
//! | bytes | what |
//! |---|---|
//! | 8 | `pyframes` |
//! | 1 | minor version of CPython 3 |
//! | 1 | 1 if it is free-threaded |
//! | 2 | 0 |
//! | 4 | how many ranges follow |
//! | 8 | address of the dictionary that holds everything |
//! | | for each range: its address (8), its length (4), its bytes |

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use pyframes::layout::{self, Layout, Series};
use pyframes::{Error, Memory, WORDS};

mod tell;

pub use tell::{LIMITS, Situation, tell};

/// Memory that was recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recording {
    /// Of which Python.
    pub series: Series,
    /// Address of the dictionary that holds everything.
    pub root: u64,
    /// What was read, by address; ranges neither overlap nor touch.
    pub ranges: Vec<Range>,
    /// How often it was read since it was made.
    reads: Cell<u64>,
}

/// Bytes at an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Range {
    /// Address of the first one.
    pub address: u64,
    /// The bytes.
    pub bytes: Vec<u8>,
}

impl Recording {
    /// Where its Python keeps things.
    pub fn layout(&self) -> &'static Layout {
        layout::of(self.series).expect("a supported series")
    }

    /// How often it was read since this was asked last.
    pub fn take_reads(&self) -> u64 {
        self.reads.take()
    }

    /// The recording as a file has it.
    pub fn encode(&self) -> Vec<u8> {
        let mut file = MAGIC.to_vec();
        file.extend([self.series.minor, u8::from(self.series.free_threaded), 0, 0]);
        file.extend((self.ranges.len() as u32).to_le_bytes());
        file.extend(self.root.to_le_bytes());
        for Range { address, bytes } in &self.ranges {
            file.extend(address.to_le_bytes());
            file.extend((bytes.len() as u32).to_le_bytes());
            file.extend(bytes);
        }
        file
    }

    /// Reads a recording out of a file.
    pub fn decode(mut file: &[u8]) -> Result<Self> {
        let magic: [u8; 8] = take(&mut file)?;
        ensure!(magic == *MAGIC, "not a recording");
        let [minor, free_threaded, ..]: [u8; 4] = take(&mut file)?;
        let n_ranges = u32::from_le_bytes(take(&mut file)?);
        let root = u64::from_le_bytes(take(&mut file)?);
        let mut ranges = Vec::new();
        for _ in 0..n_ranges {
            let address = u64::from_le_bytes(take(&mut file)?);
            let len = u32::from_le_bytes(take(&mut file)?) as usize;
            let bytes = file.split_off(..len).context("too short")?.to_vec();
            ranges.push(Range { address, bytes });
        }
        ensure!(file.is_empty(), "bytes are left over");
        let series = Series {
            minor,
            free_threaded: free_threaded != 0,
        };
        layout::of(series).context("an unknown series")?;
        Ok(Self {
            series,
            root,
            ranges,
            reads: Cell::new(0),
        })
    }
}

impl Memory for Recording {
    fn read(&self, address: u64, into: &mut [u8]) -> bool {
        self.reads.set(self.reads.get() + 1);
        let idx = self
            .ranges
            .partition_point(|range| range.address <= address);
        let Some(range) = idx.checked_sub(1).map(|idx| &self.ranges[idx]) else {
            return false;
        };
        let start = (address - range.address) as usize;
        let end = start.saturating_add(into.len());
        match range.bytes.get(start..end) {
            Some(bytes) => into.copy_from_slice(bytes),
            None => return false,
        }
        true
    }
}

/// Passes reads on and remembers what they gave.
pub struct Recorder<'m, M> {
    memory: &'m M,
    bytes: RefCell<BTreeMap<u64, u8>>,
}

impl<'m, M: Memory> Recorder<'m, M> {
    /// A recorder of what is read of `memory` through it.
    pub fn new(memory: &'m M) -> Self {
        Self {
            memory,
            bytes: RefCell::default(),
        }
    }

    /// What was read, as a recording.
    pub fn finish(self, series: Series, root: u64) -> Recording {
        let mut ranges: Vec<Range> = Vec::new();
        for (address, byte) in self.bytes.into_inner() {
            match ranges.last_mut() {
                Some(last) if last.address + last.bytes.len() as u64 == address => {
                    last.bytes.push(byte);
                }
                _ => ranges.push(Range {
                    address,
                    bytes: vec![byte],
                }),
            }
        }
        Recording {
            series,
            root,
            ranges,
            reads: Cell::new(0),
        }
    }
}

impl<M: Memory> Memory for Recorder<'_, M> {
    fn read(&self, address: u64, into: &mut [u8]) -> bool {
        // What is around frames is not looked at: the reader takes them one
        // by one if it cannot have that.
        if into.len() == size_of::<[u64; WORDS]>() {
            return false;
        }
        let read = self.memory.read(address, into);
        if read {
            let mut bytes = self.bytes.borrow_mut();
            bytes.extend((address..).zip(into.iter().copied()));
        }
        read
    }
}

fn take<const N: usize>(file: &mut &[u8]) -> Result<[u8; N]> {
    let bytes = file.split_off(..N).context("too short")?;
    Ok(bytes.try_into()?)
}

const MAGIC: &[u8; 8] = b"pyframes";

/// What was read, or why it could not be.
pub type Read<T> = std::result::Result<T, Error>;
