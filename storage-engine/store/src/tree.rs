// SPDX-License-Identifier: Apache-2.0
//! The tree of an object's keys, changed in memory: pure, knows no disk.
//!
//! A walk is given the pages that are in memory and says which it misses; its owner brings those
//! and walks again from the start. What a walk changed is a list of pages to write and to free.
//!
//! ```text
//!   page 0: root ── branch ──▶ leaf │ leaf │ …      a tree without keys has no page
//! ```
//!
//! A page that overflows is cut into several; one that a removal leaves less than a quarter full
//! is joined with its neighbor, if both fit three quarters of a page.

use plinth_format::keys::{NODE_ROOM, NODES_MAX, Node, Pair};
use std::collections::{BTreeMap, BTreeSet};

/// Deeper than any tree of 1024 pages whose branches have two children or more.
const DEPTH_MAX: usize = 16;
/// Bytes of pairs after which a list ends.
const LIST_BYTES: usize = 1 << 20;
/// Neighbors that a list asks for together with the page it misses.
const AHEAD: usize = 8;

/// Why a walk ended early.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Stop {
    /// Pages are to be brought: [`Tree::missing`].
    Missing,
    Damaged,
    /// More pages are needed than there are.
    Full,
}

/// One change; pairs and keys rise strictly.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Edit<'a> {
    Set(&'a [u8], &'a [u8]),
    Remove(&'a [u8]),
}

impl<'a> Edit<'a> {
    const fn key(&self) -> &'a [u8] {
        match self {
            Self::Set(key, _) | Self::Remove(key) => key,
        }
    }
}

/// What a page became: its parts by the least key of each.
type Parts = Vec<(Vec<u8>, u16)>;

#[derive(Debug)]
pub(crate) struct Tree<'a> {
    loaded: &'a BTreeMap<u16, Node>,
    /// Pages that are taken.
    used: BTreeSet<u16>,
    /// `None` for pages that are free afterwards.
    pub(crate) changed: BTreeMap<u16, Option<Node>>,
    pub(crate) missing: BTreeSet<u16>,
    /// Pages that this walk may still visit: a tree has each page once, so a walk that goes on
    /// for longer is in a circle.
    visits: u32,
}

impl<'a> Tree<'a> {
    pub(crate) fn new(loaded: &'a BTreeMap<u16, Node>, used: BTreeSet<u16>) -> Self {
        let (changed, missing) = (BTreeMap::new(), BTreeSet::new());
        Self { loaded, used, changed, missing, visits: 0 }
    }

    pub(crate) fn is_empty(&self) -> bool {
        !self.used.contains(&0)
    }

    fn start(&mut self) {
        self.visits = 8 * u32::from(NODES_MAX);
    }

    fn node(&mut self, page: u16, depth: usize) -> Result<Node, Stop> {
        let is_circle = self.visits == 0 || depth > DEPTH_MAX;
        if is_circle || !self.used.contains(&page) {
            return Err(Stop::Damaged);
        }
        self.visits -= 1;
        match (self.changed.get(&page), self.loaded.get(&page)) {
            (Some(Some(node)), _) | (None, Some(node)) => Ok(node.clone()),
            (Some(None), _) => Err(Stop::Damaged),
            (None, None) => {
                self.missing.insert(page);
                Err(Stop::Missing)
            }
        }
    }

    fn take_page(&mut self) -> Result<u16, Stop> {
        let page = (0..NODES_MAX).find(|page| !self.used.contains(page)).ok_or(Stop::Full)?;
        self.used.insert(page);
        Ok(page)
    }

    fn free_page(&mut self, page: u16) {
        self.used.remove(&page);
        self.changed.insert(page, None);
    }

    /// Sets and removes keys.
    pub(crate) fn edit(&mut self, edits: &[Edit<'_>]) -> Result<(), Stop> {
        self.start();
        if self.is_empty() {
            let set = |edit: &Edit<'_>| match edit {
                Edit::Set(key, value) => Some((key.to_vec(), value.to_vec())),
                Edit::Remove(_) => None,
            };
            let pairs: Vec<Pair> = edits.iter().filter_map(set).collect();
            if pairs.is_empty() {
                return Ok(());
            }
            self.used.insert(0);
            let parts = self.put(0, Node::Leaf(pairs), true)?;
            return self.settle_root(parts);
        }
        let parts = self.edit_page(0, edits, 0)?;
        self.settle_root(parts)
    }

    fn edit_page(&mut self, page: u16, edits: &[Edit<'_>], depth: usize) -> Result<Parts, Stop> {
        match self.node(page, depth)? {
            Node::Leaf(pairs) => self.edit_leaf(page, pairs, edits),
            Node::Branch(children) => {
                let can_shrink = edits.iter().any(|edit| matches!(edit, Edit::Remove(_)));
                let mut rest = edits;
                self.change_children(page, children, can_shrink, |tree, child, _, until| {
                    let is_past = |edit: &Edit<'_>| until.is_some_and(|until| edit.key() >= until);
                    let count = rest.iter().position(is_past).unwrap_or(rest.len());
                    let (own, behind) = rest.split_at(count);
                    rest = behind;
                    if own.is_empty() {
                        return Ok(None);
                    }
                    tree.edit_page(child, own, depth + 1).map(Some)
                })
            }
        }
    }

    fn edit_leaf(
        &mut self,
        page: u16,
        mut pairs: Vec<Pair>,
        edits: &[Edit<'_>],
    ) -> Result<Parts, Stop> {
        let mut is_changed = false;
        let mut is_appended = true;
        for edit in edits {
            let place = pairs.binary_search_by(|(key, _)| key.as_slice().cmp(edit.key()));
            match (*edit, place) {
                (Edit::Set(_, value), Ok(at)) => pairs[at].1 = value.to_vec(),
                (Edit::Set(key, value), Err(at)) => {
                    is_appended &= at == pairs.len();
                    pairs.insert(at, (key.to_vec(), value.to_vec()));
                }
                (Edit::Remove(_), Ok(at)) => _ = pairs.remove(at),
                (Edit::Remove(_), Err(_)) => continue,
            }
            is_changed = true;
        }
        if !is_changed {
            return Ok(unchanged(&Node::Leaf(pairs), page));
        }
        self.put(page, Node::Leaf(pairs), is_appended)
    }

    /// Removes every key from `from` on and below `to`.
    pub(crate) fn cut(&mut self, from: &[u8], to: Option<&[u8]>) -> Result<(), Stop> {
        self.start();
        if self.is_empty() {
            return Ok(());
        }
        let parts = self.cut_page(0, from, to, 0)?;
        self.settle_root(parts)
    }

    fn cut_page(
        &mut self,
        page: u16,
        from: &[u8],
        to: Option<&[u8]>,
        depth: usize,
    ) -> Result<Parts, Stop> {
        match self.node(page, depth)? {
            Node::Leaf(mut pairs) => {
                let before = pairs.len();
                let is_in = |key: &[u8]| key >= from && to.is_none_or(|to| key < to);
                pairs.retain(|(key, _)| !is_in(key));
                if pairs.len() == before {
                    return Ok(unchanged(&Node::Leaf(pairs), page));
                }
                self.put(page, Node::Leaf(pairs), false)
            }
            Node::Branch(children) => {
                self.change_children(page, children, true, |tree, child, least, until| {
                    let is_before = until.is_some_and(|until| until <= from);
                    // The first child may hold keys below the least that is written down.
                    let is_behind = least.is_some_and(|least| to.is_some_and(|to| least >= to));
                    if is_before || is_behind {
                        return Ok(None);
                    }
                    tree.cut_page(child, from, to, depth + 1).map(Some)
                })
            }
        }
    }

    /// Has every child changed that `change` wants to, which is told the least key of the child
    /// (none for the first) and that of the next. Goes on when a page is missing, so that all
    /// that are missing are known.
    fn change_children(
        &mut self,
        page: u16,
        children: Parts,
        can_shrink: bool,
        mut change: impl FnMut(
            &mut Self,
            u16,
            Option<&[u8]>,
            Option<&[u8]>,
        ) -> Result<Option<Parts>, Stop>,
    ) -> Result<Parts, Stop> {
        let mut after: Parts = Vec::with_capacity(children.len());
        let mut touched = BTreeSet::new();
        let mut is_missing = false;
        for (index, (least, child)) in children.iter().enumerate() {
            let until = children.get(index + 1).map(|(key, _)| key.as_slice());
            let from = (index > 0).then_some(least.as_slice());
            match change(self, *child, from, until) {
                Ok(None) => after.push((least.clone(), *child)),
                Ok(Some(mut parts)) => {
                    // A child may hold less than it might: its least key only falls.
                    if let Some(first) = parts.first_mut()
                        && first.0 > *least
                    {
                        first.0.clone_from(least);
                    }
                    touched.extend(parts.iter().map(|(_, child)| *child));
                    after.append(&mut parts);
                }
                Err(Stop::Missing) => is_missing = true,
                Err(other) => return Err(other),
            }
        }
        if is_missing {
            return Err(Stop::Missing);
        }
        if can_shrink {
            self.join_small(&mut after, &touched)?;
        }
        if after == children {
            return Ok(unchanged(&Node::Branch(after), page));
        }
        self.put(page, Node::Branch(after), false)
    }

    /// Joins changed children that are nearly empty with a neighbor.
    fn join_small(&mut self, children: &mut Parts, touched: &BTreeSet<u16>) -> Result<(), Stop> {
        let mut index = 0;
        while index < children.len() && children.len() > 1 {
            let child = children[index].1;
            if !touched.contains(&child) || self.node(child, 0)?.size() >= NODE_ROOM / 4 {
                index += 1;
                continue;
            }
            let left = if index + 1 < children.len() { index } else { index - 1 };
            let mut node = self.node(children[left].1, 0)?;
            let next = self.node(children[left + 1].1, 0)?;
            if node.size() + next.size() > NODE_ROOM / 4 * 3 {
                index += 1;
                continue;
            }
            if !node.join(&next) {
                return Err(Stop::Damaged);
            }
            self.changed.insert(children[left].1, Some(node));
            self.free_page(children[left + 1].1);
            children.remove(left + 1);
            index = left + 1;
        }
        Ok(())
    }

    /// Puts a changed node at its page, and what does not fit there on new ones.
    fn put(&mut self, page: u16, node: Node, is_appended: bool) -> Result<Parts, Stop> {
        if node.count() == 0 {
            self.free_page(page);
            return Ok(Vec::new());
        }
        let mut parts = Vec::new();
        for (index, part) in node.split(is_appended).into_iter().enumerate() {
            let at = if index == 0 { page } else { self.take_page()? };
            parts.extend(unchanged(&part, at));
            self.changed.insert(at, Some(part));
        }
        Ok(parts)
    }

    /// Keeps the root at page 0: what it was cut into moves below it, and a branch with one child
    /// gives way to it.
    fn settle_root(&mut self, mut parts: Parts) -> Result<(), Stop> {
        while parts.len() > 1 {
            let page = self.take_page()?;
            let node = self.changed.remove(&0).ok_or(Stop::Damaged)?;
            self.changed.insert(page, node);
            parts[0].1 = page;
            parts = self.put(0, Node::Branch(parts), false)?;
        }
        while let Some(Some(Node::Branch(children))) = self.changed.get(&0)
            && let [(_, child)] = children[..]
        {
            let node = self.node(child, 0)?;
            self.free_page(child);
            self.changed.insert(0, Some(node));
        }
        Ok(())
    }

    pub(crate) fn get(&mut self, key: &[u8]) -> Result<Option<Vec<u8>>, Stop> {
        self.start();
        let (mut page, mut depth) = (0, 0);
        if self.is_empty() {
            return Ok(None);
        }
        loop {
            match self.node(page, depth)? {
                Node::Leaf(mut pairs) => {
                    let place = pairs.binary_search_by(|(other, _)| other.as_slice().cmp(key));
                    return Ok(place.ok().map(|at| pairs.swap_remove(at).1));
                }
                Node::Branch(children) => page = children[child_of(&children, key)].1,
            }
            depth += 1;
        }
    }

    /// The last pair.
    pub(crate) fn last(&mut self) -> Result<Option<Pair>, Stop> {
        self.start();
        let (mut page, mut depth) = (0, 0);
        if self.is_empty() {
            return Ok(None);
        }
        loop {
            match self.node(page, depth)? {
                Node::Leaf(mut pairs) => return Ok(pairs.pop()),
                Node::Branch(children) => page = children.last().ok_or(Stop::Damaged)?.1,
            }
            depth += 1;
        }
    }

    /// At most `limit` pairs behind a key, and whether there are more.
    pub(crate) fn list(
        &mut self,
        after: Option<&[u8]>,
        limit: usize,
    ) -> Result<(Vec<Pair>, bool), Stop> {
        self.start();
        let mut found = Found { pairs: Vec::new(), bytes: 0, limit };
        if !self.is_empty() {
            self.collect(0, after, &mut found, 0)?;
        }
        let has_more = found.pairs.len() > limit || found.bytes > LIST_BYTES;
        if has_more {
            found.pairs.pop();
        }
        Ok((found.pairs, has_more))
    }

    fn collect(
        &mut self,
        page: u16,
        after: Option<&[u8]>,
        found: &mut Found,
        depth: usize,
    ) -> Result<(), Stop> {
        match self.node(page, depth)? {
            Node::Leaf(pairs) => {
                let start = pairs
                    .partition_point(|(key, _)| after.is_some_and(|after| key.as_slice() <= after));
                for pair in pairs.into_iter().skip(start) {
                    if found.is_full() {
                        break;
                    }
                    found.bytes += pair.0.len() + pair.1.len();
                    found.pairs.push(pair);
                }
            }
            Node::Branch(children) => {
                let first = after.map_or(0, |after| child_of(&children, after));
                for index in first..children.len() {
                    if found.is_full() {
                        break;
                    }
                    let result = self.collect(children[index].1, after, found, depth + 1);
                    if result == Err(Stop::Missing) && found.limit > AHEAD {
                        for (_, child) in children.iter().skip(index).take(AHEAD) {
                            if !self.loaded.contains_key(child) && self.used.contains(child) {
                                self.missing.insert(*child);
                            }
                        }
                    }
                    result?;
                }
            }
        }
        Ok(())
    }
}

struct Found {
    pairs: Vec<Pair>,
    bytes: usize,
    limit: usize,
}

impl Found {
    /// One pair more than is asked for tells that there are more.
    fn is_full(&self) -> bool {
        self.pairs.len() > self.limit || self.bytes > LIST_BYTES
    }
}

fn unchanged(node: &Node, page: u16) -> Parts {
    node.first_key().map(|key| (key.to_vec(), page)).into_iter().collect()
}

/// The child that a key is in, if it is anywhere.
fn child_of(children: &Parts, key: &[u8]) -> usize {
    children.partition_point(|(least, _)| least.as_slice() <= key).saturating_sub(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use plinth_format::PAGE_SIZE;

    /// A tree whose pages are bytes somewhere else.
    #[derive(Default)]
    struct Paged {
        pages: BTreeMap<u16, Vec<u8>>,
        written: u64,
    }

    impl Paged {
        fn walk<T>(&mut self, walk: impl Fn(&mut Tree<'_>) -> Result<T, Stop>) -> Result<T, Stop> {
            let mut loaded: BTreeMap<u16, Node> = BTreeMap::new();
            loop {
                let mut tree = Tree::new(&loaded, self.pages.keys().copied().collect());
                let result = walk(&mut tree);
                if result.is_ok() {
                    let changed = std::mem::take(&mut tree.changed);
                    self.write(changed);
                    return result;
                }
                let missing = std::mem::take(&mut tree.missing);
                if missing.is_empty() {
                    return result;
                }
                for page in missing {
                    let node = Node::parse(&self.pages[&page]);
                    assert!(loaded.insert(page, node.unwrap()).is_none(), "{page} was there");
                }
            }
        }

        fn write(&mut self, changed: BTreeMap<u16, Option<Node>>) {
            for (page, node) in changed {
                let Some(node) = node else {
                    self.pages.remove(&page);
                    continue;
                };
                let mut bytes = vec![0; PAGE_SIZE];
                node.emit(&mut bytes);
                self.pages.insert(page, bytes);
                self.written += 1;
            }
        }
    }

    /// A small generator of numbers, for tests that must be the same each time.
    struct Dice(u64);

    impl Dice {
        fn below(&mut self, limit: u64) -> u64 {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (self.0 >> 33) % limit
        }

        fn key(&mut self, range: u64) -> Vec<u8> {
            let number = self.below(range);
            let length = usize::try_from(number * 37 % 240).unwrap();
            let mut key = format!("{number:04}").into_bytes();
            key.resize(4 + length, b'x');
            key
        }
    }

    fn compare(tree: &mut Paged, model: &BTreeMap<Vec<u8>, Vec<u8>>, limit: usize) {
        let mut found: Vec<Pair> = Vec::new();
        loop {
            let after = found.last().map(|(key, _)| key.clone());
            let (pairs, has_more) = tree.walk(|tree| tree.list(after.as_deref(), limit)).unwrap();
            assert!(pairs.len() <= limit);
            found.extend(pairs);
            if !has_more {
                break;
            }
        }
        let expected: Vec<Pair> = model.iter().map(|(k, v)| (k.clone(), v.clone())).collect();
        assert!(found == expected, "{} pairs, not {}", found.len(), expected.len());
        let last = tree.walk(|tree| tree.last()).unwrap();
        assert_eq!(last, expected.last().cloned());
    }

    #[test]
    fn the_tree_agrees_with_a_map() {
        for seed in 1..=6 {
            let (mut dice, mut tree) = (Dice(seed), Paged::default());
            let mut model: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
            let range = 200 * seed;
            for round in 0..1500_u64 {
                let mut batch: BTreeMap<Vec<u8>, Option<Vec<u8>>> = BTreeMap::new();
                // Removals win in the second half, so that the tree shrinks to nothing.
                let removes = if round < 750 { 3 } else { 7 };
                for _ in 0..=dice.below(12) {
                    let length = usize::try_from(dice.below(40) * dice.below(40)).unwrap();
                    let byte = u8::try_from(dice.below(250)).unwrap();
                    let value = (dice.below(10) >= removes).then(|| vec![byte; length]);
                    batch.insert(dice.key(range), value);
                }
                let edits: Vec<Edit<'_>> = batch
                    .iter()
                    .map(|(key, value)| match value {
                        Some(value) => Edit::Set(key, value),
                        None => Edit::Remove(key),
                    })
                    .collect();
                if tree.walk(|tree| tree.edit(&edits)).is_err() {
                    panic!("seed {seed} round {round}");
                }
                for (key, value) in &batch {
                    match value {
                        Some(value) => model.insert(key.clone(), value.clone()),
                        None => model.remove(key),
                    };
                }
                if dice.below(40) == 0 {
                    let (from, to) = (dice.key(range), dice.key(range));
                    let to = (dice.below(4) > 0).then_some(to);
                    tree.walk(|tree| tree.cut(&from, to.as_deref())).unwrap();
                    model.retain(|key, _| *key < from || to.as_ref().is_some_and(|to| key >= to));
                }
                let key = dice.key(range);
                assert_eq!(tree.walk(|tree| tree.get(&key)).unwrap(), model.get(&key).cloned());
                if round % 20 == 0 {
                    compare(&mut tree, &model, 1 + usize::try_from(dice.below(300)).unwrap());
                    let bytes: usize = model.iter().map(|(k, v)| k.len() + v.len() + 3).sum();
                    let pages = tree.pages.len();
                    assert!(pages <= 4 + bytes / (NODE_ROOM / 5), "{pages} pages of {bytes} bytes");
                }
            }
            tree.walk(|tree| tree.cut(&[], None)).unwrap();
            assert!(tree.pages.is_empty(), "no key, no page");
        }
    }

    #[test]
    fn keys_that_come_in_order_fill_their_pages() {
        let mut tree = Paged::default();
        for number in 0..5000_u64 {
            let (key, value) = (number.to_be_bytes(), [7; 100]);
            tree.walk(|tree| tree.edit(&[Edit::Set(&key, &value)])).unwrap();
        }
        // 111 bytes a pair, 36 in a page: 139 leaves, and their branch.
        assert!(tree.pages.len() < 145, "{} pages", tree.pages.len());
        let writes = tree.written;
        assert!(writes < 5000 * 12 / 10, "{writes} page writes for 5000 changes");
        let middle = 2500_u64.to_be_bytes();
        tree.walk(|tree| tree.cut(&[], Some(&middle))).unwrap();
        assert!(tree.pages.len() < 75, "{} pages", tree.pages.len());
        let first = tree.walk(|tree| tree.list(None, 1)).unwrap().0;
        assert_eq!(first[0].0, middle);
    }

    #[test]
    fn more_than_fits_is_refused_and_pages_in_a_circle_are_damage() {
        let mut tree = Paged::default();
        let value = [7; 3000];
        let all = (0..2000_u64).try_for_each(|number| {
            tree.walk(|tree| tree.edit(&[Edit::Set(&number.to_be_bytes(), &value)]))
        });
        assert_eq!(all, Err(Stop::Full));
        let children = vec![(Vec::new(), 1), (b"m".to_vec(), 2)];
        let circle = Node::Branch(children.clone());
        let pages = [(0, circle.clone()), (1, circle.clone()), (2, circle)];
        let loaded = BTreeMap::from(pages);
        let mut tree = Tree::new(&loaded, BTreeSet::from([0, 1, 2]));
        assert_eq!(tree.get(b"k"), Err(Stop::Damaged));
        assert_eq!(tree.last(), Err(Stop::Damaged));
        assert_eq!(tree.list(None, 1000), Err(Stop::Damaged));
        assert_eq!(tree.cut(&[], None), Err(Stop::Damaged));
        assert_eq!(tree.edit(&[Edit::Remove(b"a"), Edit::Set(b"z", b"")]), Err(Stop::Damaged));
        // A child that is nowhere written.
        let mut tree = Tree::new(&loaded, BTreeSet::from([0, 1]));
        assert_eq!(tree.get(b"z"), Err(Stop::Damaged));
    }
}
