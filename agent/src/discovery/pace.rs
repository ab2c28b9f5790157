//! How often a process that may still be starting is looked at in full.
//!
//! A full look scans its modules and its mappings, which takes milliseconds
//! and locks of the process's memory. So it is only due when the process has
//! imported something, and a few times after that, ever more seldom: what is
//! imported is not at once complete, and not everything that is of interest
//! is imported.

use std::time::{Duration, Instant};

use super::frameworks::RELOOK;

/// What it depends on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace<I> {
    /// What was imported at the last question.
    imported: Option<I>,
    /// When the next look is due if nothing is imported.
    next: Option<Instant>,
    /// How long after the last one that is.
    pause: Duration,
}

impl<I: PartialEq> Pace<I> {
    /// Of a process that was not looked at yet.
    pub(super) fn new() -> Self {
        Self {
            imported: None,
            next: None,
            pause: Duration::ZERO,
        }
    }

    /// Whether a full look is due, if this is what it has imported by now;
    /// `None` if that cannot be told.
    pub(super) fn due(&mut self, imported: Option<I>, now: Instant) -> bool {
        if imported.is_none() || imported != self.imported {
            self.imported = imported;
            self.pause = super::RETRY;
        } else if self.next.is_none_or(|next| next <= now) {
            self.pause = (self.pause * 2).min(RELOOK);
        } else {
            return false;
        }
        self.next = Some(now + self.pause);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::super::RETRY;
    use super::*;

    /// At which questions, one every `RETRY`, a look is due.
    fn looks(imports: &[Option<u32>]) -> Vec<usize> {
        let start = Instant::now();
        let mut pace = Pace::new();
        let questions = (0..).zip(imports);
        questions
            .filter(|(turn, imported)| pace.due(**imported, start + RETRY * *turn))
            .map(|(turn, _)| turn as usize)
            .collect()
    }

    #[test]
    fn looks_ever_more_seldom_where_nothing_is_imported() {
        let looks = looks(&[Some(7); 600]);
        assert_eq!(looks[..7], [0, 1, 3, 7, 15, 31, 63]);
        // From then on as often as at a process that has started.
        assert_eq!(looks[7..], [127, 227, 327, 427, 527]);
    }

    #[test]
    fn looks_at_once_and_anew_at_an_import() {
        let mut imports = [Some(7); 40];
        imports[20..].fill(Some(8));
        assert_eq!(looks(&imports), [0, 1, 3, 7, 15, 20, 21, 23, 27, 35]);
    }

    #[test]
    fn looks_whenever_it_cannot_tell() {
        assert_eq!(looks(&[None; 4]), [0, 1, 2, 3]);
    }
}
