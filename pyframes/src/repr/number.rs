//! Numbers as Python writes them.

use core::fmt::{self, Write};

use super::Failure;
use crate::layout::Layout;
use crate::object;
use crate::text::Cut;
use crate::{Error, Memory, field};

/// Writes the `int` at `address` in decimal; of one that Python itself would
/// not convert (`sys.int_info.default_max_str_digits`), only the size.
#[inline(never)]
pub(super) fn write_int<M: Memory, W: Write>(
    memory: &M,
    layout: &Layout,
    address: u64,
    out: &mut W,
) -> Result<(), Failure> {
    let (n_digits, negative) = object::n_digits(memory, layout, address)?;
    if n_digits > MAX_DIGITS as u64 {
        let n_bits = n_digits.saturating_mul(DIGIT_BITS);
        return Ok(write!(out, "<int of up to {n_bits} bits>")?);
    }
    let n_digits = n_digits as usize;
    let mut digits = [[0; 4]; MAX_DIGITS];
    let digits = digits.get_mut(..n_digits).ok_or(Error::TooLong)?;
    if n_digits > 0
        && !memory.read(
            field(address, layout.long.ob_digit),
            digits.as_flattened_mut(),
        )
    {
        return Err(Error::Unreadable.into());
    }
    // Groups of nine decimal digits, the lowest first.
    let mut groups = [0_u32; MAX_GROUPS];
    let mut n_groups = 0;
    for digit in digits.iter().rev() {
        let mut carry = u64::from(u32::from_le_bytes(*digit) & DIGIT_MASK);
        for group in groups.iter_mut().take(n_groups) {
            let value = (u64::from(*group) << DIGIT_BITS) + carry;
            *group = (value % GROUP) as u32;
            carry = value / GROUP;
        }
        while carry != 0 {
            let group = groups.get_mut(n_groups).ok_or(Error::TooLong)?;
            *group = (carry % GROUP) as u32;
            carry /= GROUP;
            n_groups += 1;
        }
    }
    let mut groups = groups.iter().take(n_groups).rev();
    if negative {
        out.write_str("-")?;
    }
    write!(out, "{}", groups.next().unwrap_or(&0))?;
    for group in groups {
        write!(out, "{group:09}")?;
    }
    Ok(())
}

/// Writes a `float`: the shortest digits that give it back, with an exponent
/// below 1e-4 and from 1e16 on.
pub(super) fn write_float<W: Write>(value: f64, out: &mut W) -> fmt::Result {
    if value.is_nan() {
        return out.write_str("nan");
    }
    if value.is_infinite() {
        return out.write_str(if value > 0.0 { "inf" } else { "-inf" });
    }
    let mut buffer = [0; MAX_FLOAT];
    let mut scientific = Cut::new(&mut buffer);
    write!(scientific, "{value:e}")?;
    let scientific = scientific.finish().map_err(|_| fmt::Error)?.text;
    let (mantissa, exponent) = scientific.split_once('e').ok_or(fmt::Error)?;
    let exponent: i32 = exponent.parse().map_err(|_| fmt::Error)?;
    if !(-4..16).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return write!(out, "{mantissa}e{sign}{:02}", exponent.unsigned_abs());
    }
    // In this range Rust writes numbers in full as well.
    write!(out, "{value:?}")
}

/// Bits of an `int`'s digit.
const DIGIT_BITS: u64 = 30;
const DIGIT_MASK: u32 = (1 << DIGIT_BITS) - 1;
/// Enough for the 4,300 decimal digits that Python converts.
const MAX_DIGITS: usize = 512;
/// 512 digits of 30 bits are 4,624 decimal digits.
const MAX_GROUPS: usize = 514;
const GROUP: u64 = 1_000_000_000;
/// Bytes of the longest `{:e}` of a double, and a few.
const MAX_FLOAT: usize = 40;

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::String;

    /// What CPython's `repr` makes of it.
    #[test]
    fn writes_floats_as_python_does() {
        for (value, expected) in [
            (0.0, "0.0"),
            (-0.0, "-0.0"),
            (1.5, "1.5"),
            (0.1, "0.1"),
            (0.1 + 0.2, "0.30000000000000004"),
            (100.0, "100.0"),
            (123_456_789_012_345.6, "123456789012345.6"),
            (1e15, "1000000000000000.0"),
            (9_999_999_999_999_998.0, "9999999999999998.0"),
            (1e16, "1e+16"),
            (1.5e16, "1.5e+16"),
            (1e22, "1e+22"),
            (1e-4, "0.0001"),
            (1.5e-4, "0.00015"),
            (1e-5, "1e-05"),
            (1.25e-7, "1.25e-07"),
            (f64::MAX, "1.7976931348623157e+308"),
            (5e-324, "5e-324"),
            (-2.5e-300, "-2.5e-300"),
            (f64::INFINITY, "inf"),
            (f64::NEG_INFINITY, "-inf"),
            (f64::NAN, "nan"),
        ] {
            let mut written = String::new();
            assert_eq!(write_float(value, &mut written), Ok(()));
            assert_eq!(written, expected);
        }
    }
}
