//! Whether a process has imported anything: what changes in `sys.modules`.

use pyframes::layout::Layout;
use pyframes::{Error, Memory};

/// What changes when a module is imported. Cheap to read, so that a process
/// may be asked often.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Imports {
    /// Address of the dictionary's keys.
    keys: u64,
    /// `dk_nentries`: grows with every new key.
    entries: u64,
    /// `ma_used`.
    used: u64,
}

impl Imports {
    /// Reads them from the `PyInterpreterState` at `interpreter`.
    pub(crate) fn read<M: Memory>(
        memory: &M,
        layout: &Layout,
        interpreter: u64,
    ) -> Result<Self, Error> {
        let at = |base: u64, offset: u32| base.wrapping_add(u64::from(offset));
        let dict = memory.pointer(at(interpreter, layout.interpreter.modules))?;
        let keys = memory.pointer(at(dict, layout.dict.ma_keys))?;
        Ok(Self {
            keys,
            entries: memory.u64(at(keys, layout.dict_keys.dk_nentries))?,
            used: memory.u64(at(dict, layout.dict.ma_used))?,
        })
    }
}
