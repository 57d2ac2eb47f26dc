// SPDX-License-Identifier: Apache-2.0
//! What verify mode writes: 4 KiB blocks that know where and when they were written.
//!
//! ```text
//!   0        8        16       24       32                4096
//!   │ magic  │ block  │ version│ run    │ filler from (run, block, version) │
//! ```
//!
//! The filler is a function of the first fields, so a reader can name every fault: a block of
//! another place (misdirected), of another run (stale), half of one version and half of another
//! (torn), or bytes that nobody wrote (corrupt).

/// The unit of verification: what a store may tear between, but not within.
pub(crate) const BLOCK: usize = 4096;

const MAGIC: u64 = u64::from_le_bytes(*b"plinthVB");
const HEADER: usize = 32;

/// How often a block was written in this run; 0 is before the first time.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct Version(pub u64);

/// What a block that was read holds.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Found {
    /// A whole block of this run and this place.
    Version(Version),
    Zeroes,
    /// No block of ours at all.
    Foreign,
    /// A block of another run of this program.
    OtherRun {
        run: u64,
    },
    /// A block that belongs elsewhere.
    Misdirected {
        block: u64,
        version: Version,
    },
    /// The header is ours, a byte behind it is not.
    Corrupt {
        version: Version,
        at: usize,
    },
}

/// Eight bytes of filler: a mix of where, when and how far in.
const fn filler(run: u64, block: u64, version: u64, word: u64) -> u64 {
    let mut mixed = run ^ block.rotate_left(24) ^ version.rotate_left(48) ^ word;
    mixed = mixed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed ^= mixed >> 29;
    mixed.wrapping_mul(0xbf58_476d_1ce4_e5b9)
}

/// Makes the bytes of one version of one block.
pub(crate) fn emit(run: u64, block: u64, version: Version, into: &mut [u8; BLOCK]) {
    let header = [MAGIC, block, version.0, run];
    let (words, _) = into.as_chunks_mut::<8>();
    for (at, word) in (0u64..).zip(words) {
        let value = usize::try_from(at).ok().and_then(|at| header.get(at).copied());
        *word = value.unwrap_or_else(|| filler(run, block, version.0, at)).to_le_bytes();
    }
}

/// Says what `bytes`, read from `block` in `run`, are.
pub(crate) fn parse(run: u64, block: u64, bytes: &[u8; BLOCK]) -> Found {
    let (words, _) = bytes.as_chunks::<8>();
    let field = |at: usize| u64::from_le_bytes(words[at]);
    if bytes.iter().all(|byte| *byte == 0) {
        return Found::Zeroes;
    }
    if field(0) != MAGIC {
        return Found::Foreign;
    }
    let (place, version, of) = (field(1), field(2), field(3));
    if of != run {
        return Found::OtherRun { run: of };
    }
    let body = (0u64..).zip(words).skip(HEADER / 8);
    for (at, word) in body {
        if u64::from_le_bytes(*word) != filler(run, place, version, at) {
            let at = usize::try_from(at * 8).unwrap_or(BLOCK);
            return Found::Corrupt { version: Version(version), at };
        }
    }
    if place != block {
        return Found::Misdirected { block: place, version: Version(version) };
    }
    Found::Version(Version(version))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(block: u64, version: u64) -> [u8; BLOCK] {
        let mut bytes = [0; BLOCK];
        emit(7, block, Version(version), &mut bytes);
        bytes
    }

    #[test]
    fn a_whole_block_names_its_version() {
        assert_eq!(parse(7, 5, &made(5, 9)), Found::Version(Version(9)));
    }

    #[test]
    fn every_fault_has_its_own_name() {
        assert_eq!(parse(7, 5, &[0; BLOCK]), Found::Zeroes);
        assert_eq!(parse(7, 5, &[1; BLOCK]), Found::Foreign);
        assert_eq!(parse(8, 5, &made(5, 9)), Found::OtherRun { run: 7 });
        let misdirected = Found::Misdirected { block: 6, version: Version(9) };
        assert_eq!(parse(7, 5, &made(6, 9)), misdirected);
        let mut torn = made(5, 9);
        torn[2048..].copy_from_slice(&made(5, 8)[2048..]);
        assert_eq!(parse(7, 5, &torn), Found::Corrupt { version: Version(9), at: 2048 });
    }

    #[test]
    fn a_flipped_bit_anywhere_is_seen() {
        let whole = made(5, 9);
        for at in (0..BLOCK).step_by(61) {
            let mut bytes = whole;
            bytes[at] ^= 0x10;
            assert_ne!(parse(7, 5, &bytes), Found::Version(Version(9)), "byte {at}");
        }
    }
}
