//! What was found in mapped files, remembered over all processes.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt as _;

use crate::target::elf::{ElfError, MappedElf};

/// Files remembered; beyond that all are looked at anew.
const MAX_FILES: usize = 4096;

/// Device and inode of a mapped file.
pub(super) type FileId = ((u32, u32), u64);

/// A file with its content: an inode is used again.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Content {
    file: FileId,
    size: u64,
    changed: (i64, i64),
}

/// What was looked for in files.
pub(super) struct Files<T> {
    known: HashMap<Content, T>,
}

impl<T: Clone> Files<T> {
    /// What a file has of it; `look` looks, unless that was done before. None
    /// if nothing can be said of the file itself.
    pub(super) fn of(
        &mut self,
        image: &MappedElf,
        look: impl FnOnce(&MappedElf) -> Result<T, ElfError>,
        what: &str,
    ) -> Option<T>
    where
        T: Default,
    {
        let metadata = image.elf.metadata().ok()?;
        let content = Content {
            file: (image.device, image.inode),
            size: metadata.size(),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        };
        if let Some(known) = self.known.get(&content) {
            return Some(known.clone());
        }
        let found = look(image).unwrap_or_else(|error| {
            tracing::debug!(path = %image.path.display(), %error, "cannot look for {what}");
            T::default()
        });
        if self.known.len() >= MAX_FILES {
            self.known.clear();
        }
        self.known.insert(content, found.clone());
        Some(found)
    }
}

impl<T> Default for Files<T> {
    fn default() -> Self {
        Self {
            known: HashMap::new(),
        }
    }
}
