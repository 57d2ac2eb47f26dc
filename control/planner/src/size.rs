// SPDX-License-Identifier: Apache-2.0
//! Bytes, as people write them.

use std::fmt;
use std::str::FromStr;

/// A number of bytes. It reads `1536M`, `20G`, `1T` (powers of 1024) or plain bytes, and prints
/// the largest unit that is exact, else one decimal.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Size(pub u64);

#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{text:?} is no size: write a whole number and K, M, G or T, as in 20G")]
pub struct SizeError {
    text: String,
}

const UNITS: [(char, u32); 4] = [('T', 40), ('G', 30), ('M', 20), ('K', 10)];

impl FromStr for Size {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Self, SizeError> {
        let error = || SizeError { text: text.to_owned() };
        let short = text.strip_suffix("iB").or_else(|| text.strip_suffix('B')).unwrap_or(text);
        let upper = short.to_ascii_uppercase();
        let unit = UNITS.into_iter().find(|(letter, _)| upper.ends_with(*letter));
        let digits =
            unit.and_then(|(letter, _)| upper.strip_suffix(letter)).unwrap_or(upper.as_str());
        if digits.is_empty() || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
            return Err(error());
        }
        let number: u64 = digits.parse().map_err(|_| error())?;
        number.checked_mul(1 << unit.map_or(0, |(_, shift)| shift)).map(Self).ok_or_else(error)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((letter, shift)) = UNITS.into_iter().find(|(_, shift)| self.0 >> shift > 0) else {
            return write!(f, "{}", self.0);
        };
        let tenths = (u128::from(self.0) * 10 + (1 << (shift - 1))) >> shift;
        if tenths.is_multiple_of(10) {
            write!(f, "{}{letter}", tenths / 10)
        } else {
            write!(f, "{}.{}{letter}", tenths / 10, tenths % 10)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_write_sizes_in_several_ways() {
        for (text, bytes) in
            [("0", 0), ("512", 512), ("1K", 1024), ("256M", 256 << 20), ("20GiB", 20 << 30)]
        {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
        for text in ["", "G", "-1", "1.5G", "1X", "1GG", "99999999999T", "١G"] {
            assert!(text.parse::<Size>().is_err(), "{text:?} was taken");
        }
    }

    #[test]
    fn sizes_print_short() {
        let shown: Vec<String> =
            [0, 512, 1024, 1536, 256 << 20, (20 << 30) + 1].map(|b| Size(b).to_string()).into();
        assert_eq!(shown, ["0", "512", "1K", "1.5K", "256M", "20G"]);
    }
}
