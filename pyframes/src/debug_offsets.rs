//! Reads `_Py_DebugOffsets`, which CPython 3.13 and newer publish at the
//! beginning of `_PyRuntime`.
//!
//! Only what moves between patch releases is taken from there; everything
//! else comes from the layout of the version.

use crate::layout::{InterpreterState, Layout, RuntimeState, Series};
use crate::{Error, Memory};

/// What a runtime says about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DebugOffsets {
    /// `version`: `PY_VERSION_HEX`.
    pub version: u32,
    /// `free_threaded`.
    pub free_threaded: bool,
    /// Offset of `interpreters.head` in `_PyRuntime`.
    pub interpreters_head: u32,
    /// The offsets that move.
    pub interpreter: InterpreterState,
}

impl DebugOffsets {
    /// Reads them from `runtime`, the address of `_PyRuntime`, or `None` if
    /// the version publishes none.
    pub fn read<M: Memory>(memory: &M, runtime: u64) -> Result<Option<Self>, Error> {
        if memory.bytes(runtime)? != COOKIE {
            return Ok(None);
        }
        let number = |idx: u64| memory.u64(runtime.wrapping_add(idx * 8));
        let offset = |idx: u64| match number(idx)? {
            offset @ 0..=MAX_OFFSET => Ok(offset as u32),
            _ => Err(Error::Malformed),
        };
        let version = u32::try_from(number(VERSION)?).map_err(|_| Error::Malformed)?;
        // 3.14 put `threads_main` before `gc`.
        let shift = u64::from(version >= 0x030e_0000);
        Ok(Some(Self {
            version,
            free_threaded: number(FREE_THREADED)? != 0,
            interpreters_head: offset(INTERPRETERS_HEAD)?,
            interpreter: InterpreterState {
                next: offset(NEXT)?,
                threads_head: offset(THREADS_HEAD)?,
                modules: offset(IMPORTS_MODULES + shift)?,
            },
        }))
    }

    /// The series they belong to.
    pub fn series(&self) -> Series {
        Series {
            minor: (self.version >> 16) as u8,
            free_threaded: self.free_threaded,
        }
    }

    /// `layout` with the published offsets in place of its own.
    ///
    /// The runtime's other fields move with `interpreters.head`: this
    /// structure stands before them all, and it is what could grow.
    pub fn applied_to(&self, layout: &Layout) -> Layout {
        let mut layout = *layout;
        let shift = self
            .interpreters_head
            .wrapping_sub(layout.runtime.interpreters_head);
        let RuntimeState {
            initialized,
            auto_tss_key,
            auto_tss_key_aarch64_glibc,
            interpreters_head,
            interpreters_main,
        } = &mut layout.runtime;
        for offset in [
            initialized,
            auto_tss_key,
            auto_tss_key_aarch64_glibc,
            interpreters_head,
            interpreters_main,
        ] {
            *offset = offset.wrapping_add(shift);
        }
        layout.interpreter = self.interpreter;
        layout
    }
}

/// The first bytes of a `_PyRuntime` that publishes its offsets.
const COOKIE: [u8; 8] = *b"xdebugpy";

/// Indexes of 64-bit fields in the structure of 3.13.
const VERSION: u64 = 1;
const FREE_THREADED: u64 = 2;
const INTERPRETERS_HEAD: u64 = 5;
const NEXT: u64 = 8;
const THREADS_HEAD: u64 = 9;
const IMPORTS_MODULES: u64 = 11;

/// Larger than any structure of CPython (3.12's interpreter has 383,552
/// bytes).
const MAX_OFFSET: u64 = 1 << 24;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::Fake;
    use crate::layout;

    fn publish(fake: &mut Fake, fields: &[u64]) -> u64 {
        let runtime = fake.put(&[0; 256]);
        fake.put_u64(runtime, u64::from_le_bytes(COOKIE));
        for (idx, field) in (1..).zip(fields) {
            fake.put_u64(runtime + idx * 8, *field);
        }
        runtime
    }

    #[test]
    fn reads_what_3_13_publishes() {
        let mut fake = Fake::new();
        let fields = [
            0x030d_00f0,
            0,
            283_320,
            608,
            632,
            194_968,
            7272,
            7264,
            7344,
            7400,
            7656,
        ];
        let runtime = publish(&mut fake, &fields);
        let read = DebugOffsets::read(&fake, runtime)
            .expect("readable")
            .expect("published");
        assert_eq!(
            read.series(),
            Series {
                minor: 13,
                free_threaded: false
            }
        );
        let layout = layout::of(read.series()).expect("known");
        assert_eq!(read.applied_to(layout), *layout);
    }

    #[test]
    fn reads_what_3_14_publishes() {
        let mut fake = Fake::new();
        let fields = [
            0x030e_0af0,
            1,
            362_368,
            784,
            808,
            246_720,
            7280,
            7272,
            7344,
            7360,
            7408,
            7712,
        ];
        let runtime = publish(&mut fake, &fields);
        let read = DebugOffsets::read(&fake, runtime)
            .expect("readable")
            .expect("published");
        assert_eq!(
            read.series(),
            Series {
                minor: 14,
                free_threaded: true
            }
        );
        let layout = layout::of(read.series()).expect("known");
        assert_eq!(read.applied_to(layout), *layout);
    }

    #[test]
    fn a_longer_structure_moves_the_runtime() {
        let mut fake = Fake::new();
        let fields = [0x030d_00f0, 0, 0, 0, 632 + 16, 0, 0, 7264, 7344, 0, 7656];
        let runtime = publish(&mut fake, &fields);
        let read = DebugOffsets::read(&fake, runtime)
            .expect("readable")
            .expect("published");
        let known = layout::of(read.series()).expect("known");
        let moved = read.applied_to(known);
        assert_eq!(moved.runtime.auto_tss_key, known.runtime.auto_tss_key + 16);
        assert_eq!(moved.runtime.initialized, known.runtime.initialized + 16);
        assert_eq!(moved.interpreter, known.interpreter);
    }

    #[test]
    fn older_runtimes_publish_nothing() {
        let mut fake = Fake::new();
        let runtime = fake.put(&[1; 256]);
        assert_eq!(DebugOffsets::read(&fake, runtime), Ok(None));
        assert_eq!(DebugOffsets::read(&fake, 8), Err(Error::Unreadable));
    }

    #[test]
    fn refuses_offsets_beyond_any_structure() {
        let mut fake = Fake::new();
        let fields = [0x030d_00f0, 0, 0, 0, u64::MAX, 0, 0, 0, 0, 0, 0];
        let runtime = publish(&mut fake, &fields);
        assert_eq!(DebugOffsets::read(&fake, runtime), Err(Error::Malformed));
    }
}
