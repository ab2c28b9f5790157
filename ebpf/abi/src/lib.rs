//! The contract between the BPF programs (`ebpf`) and the agent: ring buffer
//! records, map keys and values, counters.
//!
//! Everything here is `repr(C)` with fixed-width fields and explicit padding,
//! checked by zerocopy's derives. It holds no logic beyond conversions that
//! both sides need, and knows neither tokio nor the agent.

#![no_std]

pub mod counter;
pub mod map;
pub mod record;

/// Marks types as plain old data for aya's userspace maps.
///
/// The zerocopy bounds are the proof obligation: no padding, any bit pattern
/// valid.
macro_rules! pod {
    ($($name:ty),+ $(,)?) => {
        $(
            const _: () = {
                const fn assert_plain<T: zerocopy::IntoBytes + zerocopy::FromBytes + Copy + 'static>() {}
                assert_plain::<$name>();
            };
            #[cfg(feature = "user")]
            // SAFETY: the type is `repr(C)`, has no padding and accepts every
            // bit pattern, as `assert_plain` above checks at compile time.
            unsafe impl aya::Pod for $name {}
        )+
    };
}
pub(crate) use pod;
