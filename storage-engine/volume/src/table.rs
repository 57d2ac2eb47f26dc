// SPDX-License-Identifier: Apache-2.0
//! What is known of an attached volume's objects: 8 bytes for each, in pieces of 32 KiB that are
//! made when the first object of 16 GiB is touched. So 2 MiB for a TiB that is in use, and only
//! for volumes that have snapshots or a parent; others have no table.
//!
//! Nothing here is on the disk: what is not known is looked up by listing (`gate.rs`).

/// What is known of one object of a volume.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Entry {
    Unknown,
    /// It has a head; `kept` is the highest number of a copy, 0 for none.
    Own {
        kept: u64,
    },
    /// It has no head and nothing to inherit: it reads as zeros.
    Absent {
        kept: u64,
    },
    /// It has neither head nor copies. It reads as the object of an ancestor, 0 being the
    /// parent: a copy of this number, or the head (0).
    Inherited {
        level: u8,
        number: u64,
    },
}

const CHUNK: usize = 4096;

const OWN: u64 = 1 << 62;
const ABSENT: u64 = 2 << 62;
const INHERITED: u64 = 3 << 62;
const LEVEL_SHIFT: u32 = 56;
/// A number takes 56 bits here; those of snapshots have 32 (`is_number`).
const NUMBER: u64 = (1 << LEVEL_SHIFT) - 1;

#[derive(Debug, Default)]
pub(crate) struct Table {
    chunks: Vec<Option<Box<[u64; CHUNK]>>>,
}

impl Table {
    #[inline]
    pub(crate) fn get(&self, index: u32) -> Entry {
        let (chunk, at) = (index as usize / CHUNK, index as usize % CHUNK);
        let Some(Some(chunk)) = self.chunks.get(chunk) else { return Entry::Unknown };
        let (word, number) = (chunk[at], chunk[at] & NUMBER);
        match word & INHERITED {
            0 => Entry::Unknown,
            OWN => Entry::Own { kept: number },
            ABSENT => Entry::Absent { kept: number },
            _ => {
                let level = u8::try_from(word >> LEVEL_SHIFT & 63).expect("six bits");
                Entry::Inherited { level, number }
            }
        }
    }

    pub(crate) fn set(&mut self, index: u32, entry: Entry) {
        let (chunk, at) = (index as usize / CHUNK, index as usize % CHUNK);
        let word = match entry {
            Entry::Unknown => 0,
            Entry::Own { kept } => OWN | kept & NUMBER,
            Entry::Absent { kept } => ABSENT | kept & NUMBER,
            Entry::Inherited { level, number } => {
                INHERITED | u64::from(level & 63) << LEVEL_SHIFT | number & NUMBER
            }
        };
        if self.chunks.len() <= chunk {
            if word == 0 {
                return;
            }
            self.chunks.resize_with(chunk + 1, || None);
        }
        if let Some(known) = &mut self.chunks[chunk] {
            known[at] = word;
        } else if word != 0 {
            let mut fresh = Box::new([0; CHUNK]);
            fresh[at] = word;
            self.chunks[chunk] = Some(fresh);
        }
    }

    /// Forgets everything.
    pub(crate) fn clear(&mut self) {
        self.chunks.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_set_is_found_and_the_rest_is_unknown() {
        let mut table = Table::default();
        let entries = [
            Entry::Own { kept: 0 },
            Entry::Own { kept: u64::from(u32::MAX) },
            Entry::Absent { kept: 3 },
            Entry::Inherited { level: 0, number: 0 },
            Entry::Inherited { level: 63, number: 9 },
            Entry::Unknown,
        ];
        for (place, entry) in entries.into_iter().enumerate() {
            let index = u32::try_from(place * 5000).unwrap();
            table.set(index, entry);
            assert_eq!(table.get(index), entry);
            assert_eq!(table.get(index + 1), Entry::Unknown);
        }
        table.set(u32::MAX, Entry::Unknown);
        assert!(table.chunks.len() < 10, "nothing is kept for what is not known");
        table.set(0, Entry::Unknown);
        assert_eq!(table.get(0), Entry::Unknown);
        table.clear();
        assert_eq!(table.get(5000), Entry::Unknown);
    }
}
