// SPDX-License-Identifier: Apache-2.0
//! A table of which most is shared with the one before it.

use std::sync::Arc;

/// Pairs of a chunk at most; one more and it is cut in half. An edit of 300 000 pairs copies one
/// chunk, some 40 KB, and counts up the references of the other 400.
const CHUNK_MAX: usize = 1024;
/// Pairs of a chunk that is made anew: a quarter is left for what comes.
const CHUNK_NEW: usize = 768;

/// Pairs sorted by key, one per key, in chunks that clones of the table share. A lookup halves the
/// first keys and then one chunk, some 17 times for 100 000 keys: enough for the slow path, which
/// runs once a flow, and the same in every run.
#[derive(Debug)]
pub(crate) struct Lookup<K, V> {
    /// Of each chunk, its first key.
    firsts: Vec<K>,
    /// None is empty.
    chunks: Vec<Arc<Vec<(K, V)>>>,
    length: usize,
}

impl<K: Ord, V> Lookup<K, V> {
    pub(crate) fn get(&self, key: &K) -> Option<&V> {
        let chunk = self.chunks.get(self.chunk_of(key)?)?;
        let place = chunk.binary_search_by(|(found, _)| found.cmp(key)).ok()?;
        Some(&chunk[place].1)
    }

    /// The chunk in which `key` is if it is there at all; `None`: before the first.
    fn chunk_of(&self, key: &K) -> Option<usize> {
        self.firsts.partition_point(|first| first <= key).checked_sub(1)
    }

    pub(crate) const fn len(&self) -> usize {
        self.length
    }

    /// In order of key.
    pub(crate) fn values(&self) -> impl Iterator<Item = &V> {
        self.chunks.iter().flat_map(|chunk| chunk.iter().map(|(_, value)| value))
    }
}

impl<K: Ord + Clone, V: Clone> Lookup<K, V> {
    /// Sets the value of `key`. Clones of the table keep what they had.
    pub(crate) fn insert(&mut self, key: K, value: V) {
        if self.chunks.is_empty() {
            self.firsts.push(key.clone());
            self.chunks.push(Arc::default());
        }
        let at = self.chunk_of(&key).unwrap_or(0);
        let chunk = Arc::make_mut(&mut self.chunks[at]);
        match chunk.binary_search_by(|(found, _)| found.cmp(&key)) {
            Ok(place) => chunk[place].1 = value,
            Err(place) => {
                chunk.insert(place, (key, value));
                self.length += 1;
            }
        }
        let upper = (chunk.len() > CHUNK_MAX).then(|| chunk.split_off(CHUNK_MAX / 2));
        self.firsts[at] = chunk[0].0.clone();
        if let Some(upper) = upper {
            self.firsts.insert(at + 1, upper[0].0.clone());
            self.chunks.insert(at + 1, Arc::new(upper));
        }
    }

    /// Says whether it was there. Clones of the table keep it.
    pub(crate) fn remove(&mut self, key: &K) -> bool {
        let Some(at) = self.chunk_of(key) else { return false };
        let found = self.chunks[at].binary_search_by(|(found, _)| found.cmp(key));
        let Ok(place) = found else { return false };
        let chunk = Arc::make_mut(&mut self.chunks[at]);
        chunk.remove(place);
        self.length -= 1;
        match chunk.first() {
            Some((first, _)) => self.firsts[at] = first.clone(),
            None => {
                self.firsts.remove(at);
                self.chunks.remove(at);
            }
        }
        true
    }
}

impl<K, V> Default for Lookup<K, V> {
    fn default() -> Self {
        Self { firsts: Vec::new(), chunks: Vec::new(), length: 0 }
    }
}

/// Shares every chunk.
impl<K: Clone, V> Clone for Lookup<K, V> {
    fn clone(&self) -> Self {
        Self { firsts: self.firsts.clone(), chunks: self.chunks.clone(), length: self.length }
    }
}

/// Of pairs with one key, the first is kept.
impl<K: Ord + Clone, V> FromIterator<(K, V)> for Lookup<K, V> {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(pairs: I) -> Self {
        let mut pairs: Vec<(K, V)> = pairs.into_iter().collect();
        pairs.sort_by(|(first, _), (second, _)| first.cmp(second));
        pairs.dedup_by(|(second, _), (first, _)| first == second);
        let mut table = Self { length: pairs.len(), ..Self::default() };
        let mut rest = pairs.into_iter();
        loop {
            let mut chunk = Vec::with_capacity(rest.len().min(CHUNK_NEW));
            chunk.extend(rest.by_ref().take(CHUNK_NEW));
            let Some((first, _)) = chunk.first() else { return table };
            table.firsts.push(first.clone());
            table.chunks.push(Arc::new(chunk));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    #[test]
    fn finds_every_key_once_and_nothing_else() {
        let table: Lookup<u32, char> =
            [(5, 'a'), (1, 'b'), (5, 'c'), (9, 'd')].into_iter().collect();
        let found: Vec<_> = (0..10).filter_map(|key| table.get(&key)).collect();
        assert_eq!(found, [&'b', &'a', &'d']);
        assert_eq!(table.len(), 3);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        /// Enough keys that chunks fill, are cut in half and go.
        #[test]
        fn edits_give_what_a_map_gives_and_leave_clones_alone(
            first in proptest::collection::btree_map(0_u32..4000, any::<u8>(), 0..3000),
            edits in proptest::collection::vec((0_u32..4000, any::<Option<u8>>()), 0..3000),
            emptied in 0_u32..4000,
        ) {
            let mut model = first.clone();
            let before: Lookup<u32, u8> = first.iter().map(|(&key, &value)| (key, value)).collect();
            let mut table = before.clone();
            let emptying = (emptied..(emptied + 1500).min(4000)).map(|key| (key, None));
            for (key, value) in edits.into_iter().chain(emptying) {
                match value {
                    Some(value) => {
                        table.insert(key, value);
                        model.insert(key, value);
                    }
                    None => prop_assert_eq!(table.remove(&key), model.remove(&key).is_some()),
                }
            }
            let is = |table: &Lookup<u32, u8>, model: &BTreeMap<u32, u8>| {
                table.len() == model.len()
                    && table.values().eq(model.values())
                    && (0..4000).all(|key| table.get(&key) == model.get(&key))
            };
            prop_assert!(is(&table, &model));
            prop_assert!(is(&before, &first));
            prop_assert!(table.chunks.iter().all(|chunk| (1..=CHUNK_MAX).contains(&chunk.len())));
        }
    }
}
