// SPDX-License-Identifier: Apache-2.0
//! A door for fuzzers: pages of keys that anybody may have written.
//!
//! On a disk their checksums would have to match; here they need not.

use crate::tree::{Edit, Tree};
use plinth_format::PAGE_SIZE;
use plinth_format::keys::Node;
use std::collections::{BTreeMap, BTreeSet};

/// Walks a tree whose pages are these bytes, page 0 first, in every way there is. Says how many
/// of them were pages; nothing panics.
pub fn walk_key_pages(data: &[u8]) -> usize {
    let mut loaded: BTreeMap<u16, Node> = BTreeMap::new();
    for (page, bytes) in (0..64).zip(data.chunks(PAGE_SIZE)) {
        let mut whole = [0; PAGE_SIZE];
        whole[..bytes.len()].copy_from_slice(bytes);
        if let Ok(node) = Node::parse(&whole) {
            // What was taken apart can be put together again.
            node.emit(&mut whole);
            loaded.insert(page, node);
        }
    }
    let used: BTreeSet<u16> = loaded.keys().copied().collect();
    let tree = || Tree::new(&loaded, used.clone());
    let _ = tree().get(b"k");
    let _ = tree().last();
    let _ = tree().list(None, 100);
    let _ = tree().list(Some(b"k"), 1000);
    let _ = tree().cut(b"a", Some(b"l"));
    let _ = tree().cut(b"", None);
    let mut edited = tree();
    let value = [7; 3000];
    let edits = [Edit::Remove(b"a"), Edit::Set(b"k", &value), Edit::Set(b"z", b"")];
    let _ = edited.edit(&edits);
    let _ = edited.edit(&edits);
    loaded.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_of_anybody_are_walked_without_a_panic() {
        let mut pages = vec![0; 4 * PAGE_SIZE];
        let leaf = |name: &[u8]| Node::Leaf(vec![(name.to_vec(), vec![7; 100])]);
        let root = Node::Branch(vec![(Vec::new(), 1), (b"b".to_vec(), 2), (b"m".to_vec(), 3)]);
        for (page, node) in [root, leaf(b"a"), leaf(b"k"), leaf(b"z")].into_iter().enumerate() {
            node.emit(&mut pages[page * PAGE_SIZE..(page + 1) * PAGE_SIZE]);
        }
        assert_eq!(walk_key_pages(&pages), 4);
        // Every byte of the root's entries, and of each head, with every bit turned.
        for at in (0..40).flat_map(|at| (0..4).map(move |page| page * PAGE_SIZE + at)) {
            for bit in 0..8 {
                pages[at] ^= 1 << bit;
                let _ = walk_key_pages(&pages);
                pages[at] ^= 1 << bit;
            }
        }
    }
}
