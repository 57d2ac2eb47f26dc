// SPDX-License-Identifier: Apache-2.0
//! From an object's key to its slot, without a tree.
//!
//! Open addressing: a table of slot numbers, at most half full, in which a key is looked for from
//! the place that its hash gives on. The keys themselves stand in the slots, which a request needs
//! anyway, so that the table costs 8 to 16 bytes an object. Removing moves what follows back, so
//! that there are no gravestones and a look-up never grows slower.

use crate::request::ObjectKey;

const EMPTY: u32 = u32::MAX;

#[derive(Debug)]
pub(crate) struct KeyHash {
    /// A power of two of places.
    places: Vec<u32>,
    count: usize,
    seed: u64,
}

impl KeyHash {
    pub(crate) fn new(seed: u64) -> Self {
        Self { places: vec![EMPTY; 16], count: 0, seed }
    }

    pub(crate) fn clear(&mut self) {
        self.places.fill(EMPTY);
        self.count = 0;
    }

    /// Two multiplications of 64 bits to 128, folded. The seed is in both, so that nobody who
    /// chooses keys can choose where they go.
    #[inline]
    fn hash(&self, key: &ObjectKey) -> usize {
        let fold = |a: u64, b: u64| {
            let product = u128::from(a) * u128::from(b);
            low(product) ^ low(product >> 64)
        };
        let group = u64::from(key.pool.0) << 32 | u64::from(key.pg.0);
        let object = key.object.0;
        let first = fold(
            low(object) ^ self.seed,
            low(object >> 64) ^ 0x9e37_79b9_7f4a_7c15 ^ self.seed.rotate_left(32),
        );
        let both = fold(
            first ^ group ^ 0xe703_7ed1_a0b4_28db,
            key.snapshot ^ self.seed ^ 0x8ebc_6af0_9c88_c6e3,
        );
        #[expect(clippy::cast_possible_truncation, reason = "any bits of it will do")]
        {
            (first ^ both) as usize
        }
    }

    fn next(&self, place: usize) -> usize {
        (place + 1) & (self.places.len() - 1)
    }

    /// The slot of this key; `is_it` compares with the key in a slot.
    #[inline]
    pub(crate) fn find(&self, key: &ObjectKey, is_it: impl Fn(u32) -> bool) -> Option<u32> {
        let mut place = self.hash(key) & (self.places.len() - 1);
        loop {
            match self.places[place] {
                EMPTY => return None,
                slot if is_it(slot) => return Some(slot),
                _ => place = self.next(place),
            }
        }
    }

    /// Adds a key that is not there. `key_of` gives the key in a slot.
    pub(crate) fn insert(&mut self, key: &ObjectKey, slot: u32, key_of: impl Fn(u32) -> ObjectKey) {
        if (self.count + 1) * 2 > self.places.len() {
            let larger = vec![EMPTY; self.places.len() * 2];
            let old = std::mem::replace(&mut self.places, larger);
            for slot in old.into_iter().filter(|&slot| slot != EMPTY) {
                self.put(&key_of(slot), slot);
            }
        }
        self.put(key, slot);
        self.count += 1;
    }

    fn put(&mut self, key: &ObjectKey, slot: u32) {
        let mut place = self.hash(key) & (self.places.len() - 1);
        while self.places[place] != EMPTY {
            place = self.next(place);
        }
        self.places[place] = slot;
    }

    /// Takes a key out. `key_of` gives the key in a slot.
    pub(crate) fn remove(&mut self, key: &ObjectKey, slot: u32, key_of: impl Fn(u32) -> ObjectKey) {
        let mask = self.places.len() - 1;
        let mut gap = self.hash(key) & mask;
        while self.places[gap] != slot {
            if self.places[gap] == EMPTY {
                return;
            }
            gap = self.next(gap);
        }
        self.count -= 1;
        // What follows and would be looked for before the gap or at it moves into it.
        let mut place = self.next(gap);
        while self.places[place] != EMPTY {
            let wanted = self.hash(&key_of(self.places[place])) & mask;
            if place.wrapping_sub(wanted) & mask >= place.wrapping_sub(gap) & mask {
                self.places[gap] = self.places[place];
                gap = place;
            }
            place = self.next(place);
        }
        self.places[gap] = EMPTY;
    }
}

fn low(number: u128) -> u64 {
    #[expect(clippy::cast_possible_truncation, reason = "the lower half is what is asked for")]
    {
        number as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::{ObjectId, PgId};
    use plinth_ids::PoolId;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn key(number: u32) -> ObjectKey {
        // Numbers that differ in one field only, as those of a volume's objects do.
        let object = ObjectId(3 << 96 | u128::from(number / 3));
        ObjectKey { pool: PoolId(1), pg: PgId(0), object, snapshot: u64::from(number % 3) }
    }

    proptest! {
        #[test]
        fn it_finds_what_a_map_finds(
            seed in any::<u64>(),
            steps in proptest::collection::vec((any::<bool>(), 0_u32..200), 1..600),
        ) {
            let mut hash = KeyHash::new(seed);
            let mut model: BTreeMap<u32, u32> = BTreeMap::new();
            // Slot n holds key n, so that the keys need no table here.
            for (is_insert, number) in steps {
                if is_insert && !model.contains_key(&number) {
                    hash.insert(&key(number), number, key);
                    model.insert(number, number);
                } else if !is_insert && model.remove(&number).is_some() {
                    hash.remove(&key(number), number, key);
                }
                prop_assert_eq!(hash.count, model.len());
            }
            for number in 0..200 {
                let found = hash.find(&key(number), |slot| key(slot) == key(number));
                prop_assert_eq!(found, model.get(&number).copied());
            }
        }
    }

    #[test]
    fn neighbors_do_not_crowd() {
        let mut hash = KeyHash::new(7);
        for number in 0..100_000 {
            hash.insert(&key(number), number, key);
        }
        let mut longest = 0;
        for number in 0..100_000 {
            let mut looks = 0;
            let mut place = hash.hash(&key(number)) & (hash.places.len() - 1);
            while hash.places[place] != number {
                place = hash.next(place);
                looks += 1;
            }
            longest = longest.max(looks);
        }
        // Half full, random places: the longest run of 100 000 is some 20.
        assert!(longest < 60, "{longest}");
    }
}
