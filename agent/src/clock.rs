//! Translates the kernel's time into wall-clock time: `CLOCK_MONOTONIC`
//! nanoseconds in, nanoseconds since the Unix epoch out.
//!
//! BPF stamps events with `CLOCK_MONOTONIC`. The distance to the wall clock
//! changes slowly when NTP disciplines it and at once when somebody sets it
//! or the machine was suspended. [`Mapping`] is the pure part: a list of line
//! segments, continuous and rising as long as nobody sets the clock.
//! [`Clock`] reads the clocks; besides it only `batch` and `export` do. The
//! pipeline calls [`Clock::unix`], the run loop [`Clock::resample`] every few
//! seconds.

use std::collections::VecDeque;

use rustix::time::{ClockId, clock_gettime};

/// A difference up to this is slewed, a larger one is a step.
pub const STEP_THRESHOLD: u64 = 1_000_000_000;

/// How fast a difference is worked off: 500 parts per million, as the
/// kernel's `adjtime` does.
const SLEW_DIVISOR: u64 = 2_000;

/// Segments that are kept: events older than the oldest one use its offset.
const MAX_SEGMENTS: usize = 8;

/// Readings of which the tightest is taken.
const N_READINGS: usize = 16;

/// One wall-clock reading between two monotonic ones, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    /// `CLOCK_MONOTONIC` before.
    pub before: u64,
    /// `CLOCK_REALTIME`.
    pub unix: u64,
    /// `CLOCK_MONOTONIC` after.
    pub after: u64,
}

impl Reading {
    /// Half the distance between the monotonic readings, by which the offset
    /// may be wrong.
    fn uncertainty(self) -> u64 {
        self.after.saturating_sub(self.before) / 2
    }

    fn offset(self) -> i64 {
        let middle = self.before.saturating_add(self.uncertainty());
        clamp(i128::from(self.unix) - i128::from(middle))
    }
}

/// What a new reading did to the mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Adjustment {
    /// Nothing: the difference is within the reading's uncertainty.
    Held,
    /// A difference of so many nanoseconds is being worked off.
    Slewed(i64),
    /// The wall clock was set, by so many nanoseconds.
    Stepped(i64),
}

/// The pure part: from monotonic to Unix time.
///
/// Between steps the mapping is continuous and strictly rising, so a later
/// event never comes out before an earlier one, in whatever order and between
/// whichever resamples they are translated, provided an event is older than
/// the reading that follows it and younger than [`MAX_SEGMENTS`] resamples.
/// Beyond that the error is at most the slew (0.05 %) of its age.
#[derive(Clone, Debug)]
pub struct Mapping {
    /// In order of `from`, never empty.
    segments: VecDeque<Segment>,
    steps: u64,
}

/// The offset from `from` on moves from `offset` to `goal`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Segment {
    from: u64,
    offset: i64,
    goal: i64,
}

impl Segment {
    fn offset_at(self, monotonic: u64) -> i64 {
        let age = monotonic.saturating_sub(self.from);
        let difference = i128::from(self.goal) - i128::from(self.offset);
        let slew = i128::from(age / SLEW_DIVISOR);
        clamp(i128::from(self.offset) + difference.clamp(-slew, slew))
    }
}

impl Mapping {
    /// Starts with a first reading.
    pub fn new(reading: Reading) -> Self {
        let offset = reading.offset();
        let segments = VecDeque::from([Segment {
            from: reading.before,
            offset,
            goal: offset,
        }]);
        Self { segments, steps: 0 }
    }

    /// Unix nanoseconds of a monotonic time.
    pub fn unix(&self, monotonic: u64) -> u64 {
        let unix = i128::from(monotonic) + i128::from(self.offset_at(monotonic));
        u64::try_from(unix.max(0)).unwrap_or(u64::MAX)
    }

    /// How often the wall clock was set.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Takes a new reading into account.
    pub fn adjust(&mut self, reading: Reading) -> Adjustment {
        let goal = reading.offset();
        let offset = self.offset_at(reading.after);
        let difference = clamp(i128::from(goal) - i128::from(offset));
        if difference.unsigned_abs() > STEP_THRESHOLD {
            self.steps += 1;
            self.segments = VecDeque::from([Segment {
                from: reading.after,
                offset: goal,
                goal,
            }]);
            return Adjustment::Stepped(difference);
        }
        if difference.unsigned_abs() <= reading.uncertainty() {
            return Adjustment::Held;
        }
        if self.segments.len() == MAX_SEGMENTS {
            self.segments.pop_front();
        }
        self.segments.push_back(Segment {
            from: reading.after,
            offset,
            goal,
        });
        Adjustment::Slewed(difference)
    }

    fn offset_at(&self, monotonic: u64) -> i64 {
        self.segments
            .iter()
            .rev()
            .find(|segment| segment.from <= monotonic)
            .or(self.segments.front())
            .map_or(0, |segment| segment.offset_at(monotonic))
    }
}

/// The mapping of this machine's clocks.
#[derive(Clone, Debug)]
pub struct Clock {
    mapping: Mapping,
}

impl Clock {
    /// Reads the clocks for the first time.
    pub fn new() -> Self {
        Self {
            mapping: Mapping::new(read_clocks()),
        }
    }

    /// Unix nanoseconds of a `CLOCK_MONOTONIC` time (`bpf_ktime_get_ns`).
    pub fn unix(&self, monotonic: u64) -> u64 {
        self.mapping.unix(monotonic)
    }

    /// Reads the clocks again; worth doing every few seconds.
    pub fn resample(&mut self) -> Adjustment {
        let adjustment = self.mapping.adjust(read_clocks());
        if let Adjustment::Stepped(nanoseconds) = adjustment {
            tracing::warn!(
                seconds = nanoseconds / 1_000_000_000,
                "the system clock was set or the machine was suspended"
            );
        }
        adjustment
    }

    /// How often the wall clock was set since the start.
    pub fn steps(&self) -> u64 {
        self.mapping.steps()
    }

    /// `CLOCK_MONOTONIC` now, in nanoseconds.
    pub fn monotonic() -> u64 {
        read(ClockId::Monotonic)
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::new()
    }
}

fn read_clocks() -> Reading {
    let mut best = read_once();
    for _ in 1..N_READINGS {
        let reading = read_once();
        if reading.uncertainty() < best.uncertainty() {
            best = reading;
        }
    }
    best
}

fn read_once() -> Reading {
    Reading {
        before: read(ClockId::Monotonic),
        unix: read(ClockId::Realtime),
        after: read(ClockId::Monotonic),
    }
}

fn read(clock: ClockId) -> u64 {
    let time = clock_gettime(clock);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanoseconds = u64::try_from(time.tv_nsec).unwrap_or(0);
    seconds
        .saturating_mul(1_000_000_000)
        .saturating_add(nanoseconds)
}

fn clamp(nanoseconds: i128) -> i64 {
    i64::try_from(nanoseconds).unwrap_or(if nanoseconds < 0 { i64::MIN } else { i64::MAX })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;
    const EPOCH: u64 = 1_700_000_000 * SECOND;

    fn reading(monotonic: u64, unix: u64) -> Reading {
        Reading {
            before: monotonic - 50,
            unix,
            after: monotonic + 50,
        }
    }

    #[test]
    fn adds_the_offset() {
        let mapping = Mapping::new(reading(10 * SECOND, EPOCH));
        assert_eq!(mapping.unix(10 * SECOND), EPOCH);
        assert_eq!(mapping.unix(13 * SECOND), EPOCH + 3 * SECOND);
        assert_eq!(mapping.unix(9 * SECOND), EPOCH - SECOND);
    }

    #[test]
    fn holds_within_the_uncertainty() {
        let mut mapping = Mapping::new(reading(SECOND, EPOCH));
        assert_eq!(
            mapping.adjust(reading(2 * SECOND, EPOCH + SECOND + 50)),
            Adjustment::Held
        );
        assert_eq!(mapping.unix(3 * SECOND), EPOCH + 2 * SECOND);
    }

    #[test]
    fn works_off_drift_at_a_bounded_rate() {
        let mut mapping = Mapping::new(reading(SECOND, EPOCH));
        // One millisecond behind after ten seconds.
        let at = 11 * SECOND;
        let adjustment = mapping.adjust(reading(at, EPOCH + 10 * SECOND - 1_000_000));
        assert_eq!(adjustment, Adjustment::Slewed(-1_000_000));
        assert_eq!(mapping.unix(at), EPOCH + 10 * SECOND);
        assert_eq!(
            mapping.unix(at + 50 + SECOND),
            EPOCH + 11 * SECOND + 50 - 500_000
        );
        assert_eq!(
            mapping.unix(at + 3 * SECOND),
            EPOCH + 13 * SECOND - 1_000_000
        );
        assert_eq!(mapping.steps(), 0);
    }

    #[test]
    fn adopts_a_set_clock_at_once() {
        for (unix, by) in [
            (EPOCH + 3600 * SECOND, 3590),
            (EPOCH - 3600 * SECOND, -3610),
        ] {
            let mut mapping = Mapping::new(reading(SECOND, EPOCH));
            let adjustment = mapping.adjust(reading(11 * SECOND, unix));
            assert_eq!(adjustment, Adjustment::Stepped(by * SECOND as i64));
            assert_eq!(mapping.unix(11 * SECOND), unix);
            assert_eq!(mapping.steps(), 1);
        }
    }

    #[test]
    fn never_runs_backwards_without_a_step() {
        let mut mapping = Mapping::new(reading(SECOND, EPOCH));
        let mut last = (0, 0);
        // The wall clock wanders by up to 40 ms in either direction.
        for tick in 1..5_000_u64 {
            let now = SECOND + tick * SECOND / 50;
            let wander = (tick * 7_919) % 80_000_000;
            // Events of the time since the last reading, translated before
            // and after the new one.
            let event = now - SECOND / 100;
            for _ in 0..2 {
                let unix = mapping.unix(event);
                assert!(
                    event <= last.0 || unix > last.1,
                    "{event} maps to {unix} after {last:?}"
                );
                last = last.max((event, unix));
                mapping.adjust(reading(now, EPOCH + now - SECOND + wander - 40_000_000));
            }
            assert!(mapping.segments.len() <= MAX_SEGMENTS);
        }
        assert_eq!(mapping.steps(), 0);
    }

    #[test]
    fn survives_absurd_readings() {
        let mut mapping = Mapping::new(Reading {
            before: u64::MAX,
            unix: 0,
            after: 0,
        });
        mapping.adjust(Reading {
            before: 0,
            unix: u64::MAX,
            after: u64::MAX,
        });
        for time in [0, 1, u64::MAX / 2, u64::MAX] {
            mapping.unix(time);
        }
    }

    #[test]
    fn agrees_with_the_standard_library() {
        let mut clock = Clock::new();
        clock.resample();
        let unix = clock.unix(Clock::monotonic());
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .expect("after 1970")
            .as_nanos();
        assert!(now.abs_diff(u128::from(unix)) < u128::from(SECOND));
    }
}
