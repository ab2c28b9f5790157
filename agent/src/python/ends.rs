//! Where the walk of a call may end: at the code objects that turned out to be
//! the application's. What is outside its innermost frame tells nothing more
//! of the caller.
//!
//! A code object may be freed and its address be another's. So what a walk
//! tells is read off the frame that it ended at, and one that ended at a frame
//! of something else makes the kernel side forget it.

use std::collections::{HashMap, HashSet};

use abi::map::CodeKey;

/// Most code objects of a group: an application that makes them as it runs
/// would have new ones forever.
const MAX_ENDS: usize = 128;

/// What the kernel side knows, or is about to be told.
#[derive(Debug, Default)]
pub(crate) struct Ends {
    /// Code objects by [`abi::map::Target::group`].
    known: HashMap<u32, HashSet<u64>>,
    /// What it is to be told, in order.
    news: Vec<(CodeKey, bool)>,
}

impl Ends {
    /// Walks may end at a code object.
    pub(super) fn add(&mut self, group: u32, code: u64) {
        let known = self.known.entry(group).or_default();
        if known.len() < MAX_ENDS && known.insert(code) {
            self.news.push((super::key(group, code), true));
        }
    }

    /// Walks must not end at a code object any more.
    pub(super) fn remove(&mut self, group: u32, code: u64) {
        let known = self.known.get_mut(&group);
        if known.is_some_and(|known| known.remove(&code)) {
            self.news.push((super::key(group, code), false));
        }
    }

    /// A group is gone; what the kernel side is to forget.
    pub(super) fn forget(&mut self, group: u32) -> impl Iterator<Item = CodeKey> {
        self.news.retain(|(key, _)| key.group != group);
        let known = self.known.remove(&group).unwrap_or_default();
        known.into_iter().map(move |code| super::key(group, code))
    }

    /// What the kernel side is to be told: whether walks may end there.
    pub(crate) fn drain(&mut self) -> std::vec::Drain<'_, (CodeKey, bool)> {
        self.news.drain(..)
    }
}

#[cfg(test)]
mod tests {
    use super::super::key;
    use super::*;

    fn news(ends: &mut Ends) -> Vec<(CodeKey, bool)> {
        ends.drain().collect()
    }

    #[test]
    fn tells_what_changes_and_no_more() {
        let mut ends = Ends::default();
        ends.add(1, 0x10);
        ends.add(1, 0x10);
        ends.add(2, 0x10);
        assert_eq!(
            news(&mut ends),
            [(key(1, 0x10), true), (key(2, 0x10), true)]
        );
        ends.remove(1, 0x20);
        ends.remove(1, 0x10);
        ends.remove(1, 0x10);
        assert_eq!(news(&mut ends), [(key(1, 0x10), false)]);
    }

    #[test]
    fn a_group_that_is_gone_is_forgotten() {
        let mut ends = Ends::default();
        ends.add(1, 0x10);
        ends.add(2, 0x20);
        let forgotten: Vec<CodeKey> = ends.forget(1).collect();
        assert_eq!(forgotten, [key(1, 0x10)]);
        assert_eq!(news(&mut ends), [(key(2, 0x20), true)]);
        assert_eq!(ends.forget(1).count(), 0);
    }

    #[test]
    fn a_group_has_so_many() {
        let mut ends = Ends::default();
        for code in 0..1000 {
            ends.add(1, code);
        }
        assert_eq!(news(&mut ends).len(), MAX_ENDS);
        ends.remove(1, 0);
        ends.add(1, 5000);
        assert_eq!(news(&mut ends), [(key(1, 0), false), (key(1, 5000), true)]);
    }
}
