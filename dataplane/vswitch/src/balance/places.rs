// SPDX-License-Identifier: Apache-2.0
//! Places in tables that are kept for as long as what has them is configured.

use std::collections::{BTreeMap, BTreeSet};

#[derive(Debug)]
pub(crate) struct Places<K> {
    by_key: BTreeMap<K, u32>,
}

impl<K> Default for Places<K> {
    fn default() -> Self {
        Self { by_key: BTreeMap::new() }
    }
}

impl<K: Ord + Clone> Places<K> {
    /// Everything wanted has the place that it had, or the lowest that is free: so none is as high
    /// as there are wanted ones in this configuration or were in one before.
    pub(crate) fn upon(previous: &Self, wanted: impl Iterator<Item = K>) -> Self {
        let wanted: BTreeSet<K> = wanted.collect();
        let kept = |key: &K| previous.by_key.get(key).copied();
        let taken: BTreeSet<u32> = wanted.iter().filter_map(kept).collect();
        let mut free = (0..).filter(|place| !taken.contains(place));
        let by_key = wanted.into_iter().map(|key| {
            let place = kept(&key).or_else(|| free.next()).expect("there are 2^32 places");
            (key, place)
        });
        Self { by_key: by_key.collect() }
    }

    pub(crate) fn get(&self, key: &K) -> Option<u32> {
        self.by_key.get(key).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_stay_and_free_ones_are_taken_from_below() {
        let first = Places::upon(&Places::default(), ["a", "b", "c"].into_iter());
        let second = Places::upon(&first, ["c", "d", "e", "f"].into_iter());
        assert_eq!(second.get(&"c"), first.get(&"c"));
        let places: BTreeSet<_> = ["c", "d", "e", "f"].iter().map(|key| second.get(key)).collect();
        assert_eq!(places, (0..4).map(Some).collect());
        assert_eq!(second.get(&"a"), None);
    }
}
