// SPDX-License-Identifier: Apache-2.0
//! Makes new inputs of old ones, the same ones for the same seed.

/// No input is longer: what a length field claims may be large, what is there is not.
pub const LENGTH_MAX: usize = 16 * 1024;

/// Numbers at which lengths, offsets and counters like to break.
const INTERESTING: &[u64] = &[
    0,
    1,
    2,
    7,
    8,
    15,
    16,
    0x7f,
    0x80,
    0xff,
    0x100,
    0x1ff,
    0x200,
    0xfff,
    0x1000,
    0x7fff,
    0x8000,
    0xffff,
    0x1_0000,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    0x1_0000_0000,
    0x7fff_ffff_ffff_ffff,
    0x8000_0000_0000_0000,
    0xffff_ffff_ffff_f000,
    0xffff_ffff_ffff_ffff,
];

/// A small generator with a 64-bit state (splitmix64): fast, and good enough to choose bytes.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub const fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`, or 0 when `bound` is 0.
    pub fn below(&mut self, bound: usize) -> usize {
        let bound = u64::try_from(bound).expect("usize has at most 64 bits").max(1);
        usize::try_from(self.number() % bound).expect("the result is below a usize")
    }

    fn byte(&mut self) -> u8 {
        self.number().to_le_bytes()[0]
    }
}

#[derive(Clone, Debug)]
pub struct Mutator {
    random: Random,
    corpus: Vec<Vec<u8>>,
    /// Corpus entries are given out as they are before any is changed.
    plain: usize,
}

impl Mutator {
    #[must_use]
    pub const fn new(seed: u64, corpus: Vec<Vec<u8>>) -> Self {
        Self { random: Random::new(seed), corpus, plain: 0 }
    }

    /// The next input: first each corpus entry unchanged, then changed ones for ever.
    pub fn take(&mut self) -> Vec<u8> {
        if let Some(entry) = self.corpus.get(self.plain) {
            self.plain += 1;
            return entry.clone();
        }
        // Some inputs owe nothing to the corpus, so that a poor corpus hides nothing.
        if self.corpus.is_empty() || self.random.below(16) == 0 {
            let length = self.random.below(512);
            return (0..length).map(|_| self.random.byte()).collect();
        }
        let pick = self.random.below(self.corpus.len());
        let mut input = self.corpus[pick].clone();
        for _ in 0..=self.random.below(6) {
            self.change(&mut input);
        }
        input.truncate(LENGTH_MAX);
        input
    }

    fn change(&mut self, input: &mut Vec<u8>) {
        if input.is_empty() {
            input.push(self.random.byte());
            return;
        }
        let at = self.random.below(input.len());
        match self.random.below(12) {
            0 | 1 => input[at] ^= 1 << self.random.below(8),
            2 => input[at] = self.random.byte(),
            3..=5 => self.overwrite_number(input, at),
            6 => self.nudge_number(input, at),
            7 => input.truncate(at),
            8 => self.insert(input, at),
            9 => self.remove(input, at),
            10 => self.repeat(input, at),
            _ => self.splice(input, at),
        }
    }

    /// Puts an interesting number, of 1 to 8 bytes and either byte order, over what is there.
    fn overwrite_number(&mut self, input: &mut [u8], at: usize) {
        let number = INTERESTING[self.random.below(INTERESTING.len())];
        let width = 1 << self.random.below(4);
        let little = number.to_le_bytes();
        let big = number.to_be_bytes();
        let bytes = if self.random.below(2) == 0 { &little[..width] } else { &big[8 - width..] };
        for (to, from) in input[at..].iter_mut().zip(bytes) {
            *to = *from;
        }
    }

    /// Adds or takes a little from a 16-bit number: lengths that are off by one.
    fn nudge_number(&mut self, input: &mut [u8], at: usize) {
        let Some(place) = input[at..].first_chunk_mut::<2>() else { return };
        let by = u16::from(self.random.byte() % 9).wrapping_sub(4);
        *place = if self.random.below(2) == 0 {
            u16::from_le_bytes(*place).wrapping_add(by).to_le_bytes()
        } else {
            u16::from_be_bytes(*place).wrapping_add(by).to_be_bytes()
        };
    }

    fn insert(&mut self, input: &mut Vec<u8>, at: usize) {
        let length = 1 + self.random.below(32);
        let fill = self.random.byte();
        let is_fill = self.random.below(2) == 0;
        let bytes: Vec<u8> =
            (0..length).map(|_| if is_fill { fill } else { self.random.byte() }).collect();
        input.splice(at..at, bytes);
    }

    fn remove(&mut self, input: &mut Vec<u8>, at: usize) {
        let end = (at + 1 + self.random.below(32)).min(input.len());
        input.drain(at..end);
    }

    fn repeat(&mut self, input: &mut Vec<u8>, at: usize) {
        let end = (at + 1 + self.random.below(64)).min(input.len());
        let block = input[at..end].to_vec();
        for _ in 0..=self.random.below(4) {
            input.splice(at..at, block.iter().copied());
        }
    }

    fn splice(&mut self, input: &mut Vec<u8>, at: usize) {
        let pick = self.random.below(self.corpus.len());
        let other = &self.corpus[pick];
        let from = self.random.below(other.len());
        input.truncate(at);
        input.extend_from_slice(&self.corpus[pick][from..]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn corpus() -> Vec<Vec<u8>> {
        vec![b"hello, world".to_vec(), vec![0; 100]]
    }

    #[test]
    fn the_same_seed_gives_the_same_inputs() {
        let (mut one, mut two) = (Mutator::new(7, corpus()), Mutator::new(7, corpus()));
        let mut other = Mutator::new(8, corpus());
        let mut differs = false;
        for _ in 0..1000 {
            let input = one.take();
            assert_eq!(input, two.take());
            differs |= input != other.take();
        }
        assert!(differs);
    }

    #[test]
    fn corpus_entries_come_first_and_unchanged() {
        let mut mutator = Mutator::new(1, corpus());
        assert_eq!([mutator.take(), mutator.take()], [corpus()[0].clone(), corpus()[1].clone()]);
    }

    #[test]
    fn inputs_vary_and_stay_bounded() {
        let mut mutator = Mutator::new(3, corpus());
        let inputs: BTreeSet<Vec<u8>> = (0..5000).map(|_| mutator.take()).collect();
        assert!(inputs.len() > 4000, "{}", inputs.len());
        assert!(inputs.iter().all(|input| input.len() <= LENGTH_MAX));
        assert!(inputs.iter().any(Vec::is_empty));
    }

    #[test]
    fn an_empty_corpus_still_gives_inputs() {
        let mut mutator = Mutator::new(3, Vec::new());
        assert!((0..100).any(|_| mutator.take().len() > 100));
    }
}
