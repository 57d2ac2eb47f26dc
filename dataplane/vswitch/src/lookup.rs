// SPDX-License-Identifier: Apache-2.0
//! A table that is made once and then only read.

/// Pairs sorted by key, one per key. A lookup halves the table some 17 times for 100 000 keys:
/// enough for the slow path, which runs once a flow, and the same in every run.
#[derive(Debug)]
pub(crate) struct Lookup<K, V> {
    pairs: Box<[(K, V)]>,
}

impl<K: Ord, V> Lookup<K, V> {
    pub(crate) fn get(&self, key: &K) -> Option<&V> {
        let place = self.pairs.binary_search_by(|(found, _)| found.cmp(key)).ok()?;
        Some(&self.pairs[place].1)
    }
}

impl<K, V> Default for Lookup<K, V> {
    fn default() -> Self {
        Self { pairs: Box::new([]) }
    }
}

/// Of pairs with one key, the first is kept.
impl<K: Ord, V> FromIterator<(K, V)> for Lookup<K, V> {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(pairs: I) -> Self {
        let mut pairs: Vec<(K, V)> = pairs.into_iter().collect();
        pairs.sort_by(|(first, _), (second, _)| first.cmp(second));
        pairs.dedup_by(|(second, _), (first, _)| first == second);
        Self { pairs: pairs.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_every_key_once_and_nothing_else() {
        let table: Lookup<u32, char> =
            [(5, 'a'), (1, 'b'), (5, 'c'), (9, 'd')].into_iter().collect();
        let found: Vec<_> = (0..10).filter_map(|key| table.get(&key)).collect();
        assert_eq!(found, [&'b', &'a', &'d']);
    }
}
