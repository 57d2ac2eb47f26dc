// SPDX-License-Identifier: Apache-2.0
//! Keys and values of objects, and the logs of placement groups.
//!
//! The pages of an object's tree are blocks of a hidden companion object, which differs from it
//! in the upper bits of the pool. So a change of keys becomes writes of whole blocks in the same
//! transaction, and whatever holds for those (atomicity, checksums, sharing) holds for keys:
//!
//! ```text
//!   SetKeys ─▶ bring pages ─▶ walk the tree ─▶ Write / Zero of the companion's blocks ─▶ as any change
//! ```
//!
//! A block of the companion that is written is a page in use; there is no other list of pages.
//! The steps are planned once: nobody else changes the tree before they are carried out, because
//! requests on an object wait for the earlier ones.

use crate::buffer::BLOCK_SIZE;
use crate::change::Ready;
use crate::disk::Disk;
use crate::io::Place;
use crate::op::{Step, StepKind, Work};
use crate::query::Found;
use crate::read::Source;
use crate::request::{LIST_MAX, ObjectId, ObjectKey, PgId, StoreAnswer, StoreRefusal};
use crate::store::{Store, StoreState};
use crate::tree::{Edit, Stop, Tree};
use plinth_format::keys::{KEY_MAX, Node, Pair, VALUE_MAX};
use plinth_format::{MAP_BLOCKS, OBJECT_UNITS, UNIT_BLOCKS};
use plinth_ids::PoolId;
use std::collections::{BTreeMap, BTreeSet};

/// Set in the pool of a hidden object.
const HIDDEN: u32 = 1 << 31;
/// Set besides in the log of a group.
const LOG: u32 = 1 << 30;
/// The last pool that objects of users may have.
pub(crate) const POOL_MAX: u32 = LOG - 1;

/// Where a log remembers its last version when all its entries are gone: before every entry.
const HEAD: &[u8] = &[];

pub(crate) const fn is_hidden(key: &ObjectKey) -> bool {
    key.pool.0 > POOL_MAX
}

/// Whether the object has the keys of another one. Whoever changes it has named that one.
pub(crate) const fn is_companion(key: &ObjectKey) -> bool {
    key.pool.0 & (HIDDEN | LOG) == HIDDEN
}

const fn is_log(key: &ObjectKey) -> bool {
    key.pool.0 & (HIDDEN | LOG) == HIDDEN | LOG
}

pub(crate) const fn companion(key: &ObjectKey) -> ObjectKey {
    ObjectKey { pool: PoolId(key.pool.0 | HIDDEN), ..*key }
}

pub(crate) const fn log_key(pool: PoolId, pg: PgId) -> ObjectKey {
    ObjectKey { pool: PoolId(pool.0 | HIDDEN | LOG), pg, object: ObjectId(0), snapshot: 0 }
}

/// The pool and group that a hidden key or any other belongs to.
pub(crate) const fn group_of(key: &ObjectKey) -> (PoolId, PgId) {
    (PoolId(key.pool.0 & POOL_MAX), key.pg)
}

/// What a step does to keys, or to a log.
#[derive(Debug)]
pub(crate) enum KeysChange {
    /// In order, each key once.
    Set(Vec<Pair>),
    Remove(Vec<Vec<u8>>),
    Cut {
        from: Vec<u8>,
        to: Option<Vec<u8>>,
    },
    Append {
        version: u64,
        entry: Vec<u8>,
    },
    Trim {
        up_to: u64,
    },
}

impl KeysChange {
    pub(crate) fn set(key: &ObjectKey, mut pairs: Vec<Pair>) -> Result<Self, StoreRefusal> {
        let fits =
            |(name, value): &Pair| (1..=KEY_MAX).contains(&name.len()) && value.len() <= VALUE_MAX;
        if !pairs.iter().all(fits) {
            return Err(StoreRefusal::BadPair { key: *key });
        }
        // The last of equal keys counts: it comes first after the reversal, and the sort is stable.
        pairs.reverse();
        pairs.sort_by(|(one, _), (other, _)| one.cmp(other));
        pairs.dedup_by(|(one, _), (other, _)| one == other);
        Ok(Self::Set(pairs))
    }

    pub(crate) fn remove(mut names: Vec<Vec<u8>>) -> Self {
        names.sort();
        names.dedup();
        Self::Remove(names)
    }

    pub(crate) fn append(
        key: &ObjectKey,
        version: u64,
        entry: Vec<u8>,
    ) -> Result<Self, StoreRefusal> {
        if entry.len() > VALUE_MAX {
            return Err(StoreRefusal::BadPair { key: *key });
        }
        Ok(Self::Append { version, entry })
    }

    /// Whether the step makes its object if it is not there.
    pub(crate) const fn makes(&self) -> bool {
        matches!(self, Self::Set(_))
    }
}

/// The trees that an operation walks.
#[derive(Debug, Default)]
pub(crate) struct Trees {
    list: Vec<TreeState>,
    /// The walk is over and its outcome is among the steps.
    is_planned: bool,
}

#[derive(Debug)]
pub(crate) struct TreeState {
    pub(crate) key: ObjectKey,
    nodes: BTreeMap<u16, Node>,
    /// A page that came up was none.
    is_bad: bool,
    changed: Option<BTreeMap<u16, Option<Node>>>,
}

impl TreeState {
    const fn new(key: ObjectKey) -> Self {
        Self { key, nodes: BTreeMap::new(), is_bad: false, changed: None }
    }
}

impl Trees {
    fn of(keys: impl Iterator<Item = ObjectKey>) -> Self {
        let mut trees = Self::default();
        for key in keys {
            if trees.list.iter().all(|tree| tree.key != key) {
                trees.list.push(TreeState::new(key));
            }
        }
        trees
    }

    pub(crate) fn key(&self, tree: usize) -> Option<ObjectKey> {
        self.list.get(tree).map(|tree| tree.key)
    }

    /// A block came up from the disk.
    pub(crate) fn place(&mut self, tree: usize, block: u32, bytes: &[u8]) {
        let Some(tree) = self.list.get_mut(tree) else { return };
        match (u16::try_from(block), Node::parse(bytes)) {
            (Ok(page), Ok(node)) => _ = tree.nodes.insert(page, node),
            _ => tree.is_bad = true,
        }
    }

    fn forget(&mut self) {
        for tree in &mut self.list {
            tree.nodes.clear();
            tree.is_bad = false;
        }
    }
}

/// Why a walk did not end well.
enum Halt {
    Stop(Stop),
    Refuse(StoreRefusal),
}

impl From<Stop> for Halt {
    fn from(stop: Stop) -> Self {
        Self::Stop(stop)
    }
}

enum Walked<T> {
    Done(T, BTreeMap<u16, Option<Node>>),
    Wait,
    Refuse(StoreRefusal),
}

/// The tree that a step changes, if it is about keys.
fn tree_of(step: &Step) -> Option<(ObjectKey, &KeysChange)> {
    let StepKind::Keys(change) = &step.kind else { return None };
    Some((if is_log(&step.key) { step.key } else { companion(&step.key) }, change))
}

impl<D: Disk> Store<D> {
    /// Turns steps about keys into steps about blocks, once their trees' pages are there.
    pub(crate) fn plan_keys(&mut self, op: u32, work: &mut Work) -> Ready {
        let Work::Many(steps) = work else { return Ready::Yes };
        if self.state != StoreState::Writable || steps.iter().all(|step| tree_of(step).is_none()) {
            return Ready::Yes;
        }
        let Some(mut trees) = self.take_trees(op, || {
            Trees::of(steps.iter().filter_map(|step| tree_of(step).map(|(key, _)| key)))
        }) else {
            return Ready::Wait;
        };
        let mut ready = Ready::Yes;
        if !trees.is_planned {
            for number in 0..trees.list.len() {
                let tree = &mut trees.list[number];
                let key = tree.key;
                if tree.changed.is_some() {
                    continue;
                }
                let edit = |tree: &mut Tree<'_>| edit_all(tree, steps, &key);
                match self.walk(op, number, tree, edit) {
                    Walked::Done((), changed) => tree.changed = Some(changed),
                    Walked::Wait => ready = Ready::Wait,
                    Walked::Refuse(refusal) => return Ready::Refuse(refusal),
                }
            }
            if matches!(ready, Ready::Yes) {
                for tree in &mut trees.list {
                    let changed = tree.changed.take().unwrap_or_default();
                    self.add_steps(steps, tree.key, changed);
                    tree.nodes.clear();
                }
                trees.is_planned = true;
            }
        }
        if let Some(entry) = self.ops.get_mut(op) {
            entry.trees = Some(trees);
        }
        ready
    }

    fn take_trees(&mut self, op: u32, make: impl FnOnce() -> Trees) -> Option<Box<Trees>> {
        let entry = self.ops.get_mut(op)?;
        let mut trees = entry.trees.take().unwrap_or_else(|| Box::new(make()));
        if !trees.is_planned && std::mem::take(&mut entry.must_retry) {
            trees.forget();
        }
        Some(trees)
    }

    /// Walks a tree as far as its pages are in memory, and asks for those that are not.
    fn walk<T>(
        &mut self,
        op: u32,
        number: usize,
        state: &mut TreeState,
        walk: impl Fn(&mut Tree<'_>) -> Result<T, Halt>,
    ) -> Walked<T> {
        let key = state.key;
        let slot = self.objects.find(&key);
        if let Some(slot) = slot {
            match self.need_pages(&[slot]) {
                Ok(true) => {}
                Ok(false) => return Walked::Wait,
                Err(refusal) => return Walked::Refuse(refusal),
            }
        }
        let used = slot.map(|slot| self.pages_in_use(slot)).unwrap_or_default();
        while !state.is_bad {
            let mut tree = Tree::new(&state.nodes, used.clone());
            let result = walk(&mut tree);
            let (changed, missing) = (tree.changed, tree.missing);
            match (result, slot) {
                (Ok(value), _) => return Walked::Done(value, changed),
                (Err(Halt::Refuse(refusal)), _) => return Walked::Refuse(refusal),
                (Err(Halt::Stop(Stop::Full)), _) => {
                    return Walked::Refuse(StoreRefusal::KeysFull { key });
                }
                (Err(Halt::Stop(Stop::Missing)), Some(slot)) if !missing.is_empty() => {
                    if self.read_nodes(op, number, slot, &missing, state) {
                        return Walked::Wait;
                    }
                }
                (Err(Halt::Stop(_)), _) => state.is_bad = true,
            }
        }
        self.counters.bad_metadata += 1;
        Walked::Refuse(StoreRefusal::BadKeys { key })
    }

    /// The blocks of a companion that are written. Its map pages are in memory.
    fn pages_in_use(&self, slot: u32) -> BTreeSet<u16> {
        let bits = (0..OBJECT_UNITS).flat_map(|index| {
            let written = self.written_of(slot, index);
            (0..UNIT_BLOCKS)
                .filter(move |at| written & (1 << at) != 0)
                .map(move |at| index * UNIT_BLOCKS + at)
        });
        bits.filter_map(|block| u16::try_from(block).ok()).collect()
    }

    /// Brings pages into memory. `true` when some of them are on their way.
    fn read_nodes(
        &mut self,
        op: u32,
        number: usize,
        slot: u32,
        pages: &BTreeSet<u16>,
        state: &mut TreeState,
    ) -> bool {
        let mut must_wait = false;
        for &page in pages {
            let block = u32::from(page);
            if self.has_writes(slot, block, block + 1) {
                must_wait = true;
                continue;
            }
            let frame = self.objects.slot(slot).frames[(block / MAP_BLOCKS) as usize];
            match self.source(frame, block) {
                Source::Disk(data_block) => {
                    let buffer = self.io.pool.take(BLOCK_SIZE);
                    let place = Place::Node { tree: number };
                    self.start_run(op, frame, block, 1, data_block, place, buffer);
                    must_wait = true;
                }
                Source::Overlay(data_block) => {
                    let bytes = self.overlay.get(data_block).unwrap_or(&[]);
                    match Node::parse(bytes) {
                        Ok(node) => _ = state.nodes.insert(page, node),
                        Err(_) => state.is_bad = true,
                    }
                }
                Source::Zero => state.is_bad = true,
            }
        }
        must_wait
    }

    /// Adds the steps that write a tree's changed pages and free the others. Writes come first,
    /// so that no unit is given up that a later step has use for.
    fn add_steps(
        &mut self,
        steps: &mut Vec<Step>,
        key: ObjectKey,
        changed: BTreeMap<u16, Option<Node>>,
    ) {
        if matches!(changed.get(&0), Some(None)) {
            steps.push(Step { key, kind: StepKind::Remove, buffer: None });
            return;
        }
        let block = plinth_format::BLOCK_SIZE;
        let (kept, freed): (BTreeMap<_, _>, BTreeMap<_, _>) =
            changed.into_iter().partition(|(_, node)| node.is_some());
        for (first, nodes) in runs(kept) {
            let length = nodes.len() * BLOCK_SIZE;
            let mut buffer = self.io.pool.take(length);
            let bytes = buffer.as_bytes_mut().chunks_exact_mut(BLOCK_SIZE);
            for (page, node) in bytes.zip(nodes.into_iter().flatten()) {
                node.emit(page);
            }
            let offset = u32::from(first) * block;
            let length = u32::try_from(length).expect("a tree has at most 4 MiB");
            let kind = StepKind::Write { offset, length };
            steps.push(Step { key, kind, buffer: Some(buffer) });
        }
        for (first, nodes) in runs(freed) {
            let length = u32::try_from(nodes.len()).expect("a tree has 1024 pages") * block;
            let kind = StepKind::Zero { offset: u32::from(first) * block, length };
            steps.push(Step { key, kind, buffer: None });
        }
    }

    pub(crate) fn get_keys(&mut self, op: u32, key: &ObjectKey, names: &[Vec<u8>]) -> Found {
        if self.objects.find(key).is_none() {
            return Found::Refusal(StoreRefusal::NotFound { key: *key });
        }
        let get = |tree: &mut Tree<'_>| {
            let mut pairs = Vec::new();
            let mut is_missing = false;
            for name in names.iter().take(LIST_MAX) {
                match tree.get(name) {
                    Ok(Some(value)) => pairs.push((name.clone(), value)),
                    Ok(None) => {}
                    // Go on, so that all that is missing is brought at once.
                    Err(Stop::Missing) => is_missing = true,
                    Err(stop) => return Err(stop.into()),
                }
            }
            if is_missing { Err(Stop::Missing.into()) } else { Ok(pairs) }
        };
        self.ask_tree(op, companion(key), get, |pairs| StoreAnswer::Keys { pairs, more: false })
    }

    pub(crate) fn list_keys(
        &mut self,
        op: u32,
        key: &ObjectKey,
        after: Option<&[u8]>,
        limit: usize,
    ) -> Found {
        if self.objects.find(key).is_none() {
            return Found::Refusal(StoreRefusal::NotFound { key: *key });
        }
        let list = |tree: &mut Tree<'_>| Ok(tree.list(after, limit)?);
        let answer = |(pairs, more)| StoreAnswer::Keys { pairs, more };
        self.ask_tree(op, companion(key), list, answer)
    }

    pub(crate) fn read_log(&mut self, op: u32, key: ObjectKey, after: u64, limit: usize) -> Found {
        let read = |tree: &mut Tree<'_>| {
            let last = last_version(tree)?;
            let (pairs, more) = tree.list(Some(&after.to_be_bytes()), limit)?;
            let entries = pairs.into_iter().map(|(version, entry)| {
                let version = version.try_into().map_err(|_| Stop::Damaged)?;
                Ok((u64::from_be_bytes(version), entry))
            });
            Ok((entries.collect::<Result<Vec<_>, Stop>>()?, last, more))
        };
        let answer = |(entries, last, more)| StoreAnswer::Log { entries, last, more };
        self.ask_tree(op, key, read, answer)
    }

    fn ask_tree<T>(
        &mut self,
        op: u32,
        key: ObjectKey,
        walk: impl Fn(&mut Tree<'_>) -> Result<T, Halt>,
        answer: impl FnOnce(T) -> StoreAnswer,
    ) -> Found {
        let Some(mut trees) = self.take_trees(op, || Trees::of(std::iter::once(key))) else {
            return Found::Not;
        };
        let walked = self.walk(op, 0, &mut trees.list[0], walk);
        if let Some(entry) = self.ops.get_mut(op) {
            entry.trees = Some(trees);
        }
        match walked {
            Walked::Done(value, _) => Found::Answer(answer(value)),
            Walked::Wait => Found::Not,
            Walked::Refuse(refusal) => Found::Refusal(refusal),
        }
    }
}

/// Carries out every step that is about this tree, in order.
fn edit_all(tree: &mut Tree<'_>, steps: &[Step], key: &ObjectKey) -> Result<(), Halt> {
    for (_, change) in steps.iter().filter_map(tree_of).filter(|(other, _)| other == key) {
        match change {
            KeysChange::Set(pairs) => {
                let edits: Vec<Edit<'_>> =
                    pairs.iter().map(|(name, value)| Edit::Set(name, value)).collect();
                tree.edit(&edits)?;
            }
            KeysChange::Remove(names) => {
                let edits: Vec<Edit<'_>> = names.iter().map(|name| Edit::Remove(name)).collect();
                tree.edit(&edits)?;
            }
            KeysChange::Cut { from, to } => tree.cut(from, to.as_deref())?,
            KeysChange::Append { version, entry } => {
                let (last, version) = (last_version(tree)?, *version);
                if version <= last {
                    let (pool, pg) = group_of(key);
                    return Err(Halt::Refuse(StoreRefusal::LogOrder { pool, pg, version, last }));
                }
                tree.edit(&[Edit::Set(&version.to_be_bytes(), entry)])?;
            }
            KeysChange::Trim { up_to } => {
                let last = last_version(tree)?;
                let end = up_to.checked_add(1).map(u64::to_be_bytes);
                // Behind the head, which is no entry.
                tree.cut(&[0], end.as_ref().map(<[u8; 8]>::as_slice))?;
                if *up_to >= last && last > 0 {
                    tree.edit(&[Edit::Set(HEAD, &last.to_be_bytes())])?;
                }
            }
        }
    }
    Ok(())
}

/// The version of the last entry that a log ever had, 0 for none.
fn last_version(tree: &mut Tree<'_>) -> Result<u64, Stop> {
    let number = |bytes: Vec<u8>| bytes.try_into().map(u64::from_be_bytes);
    match tree.last()? {
        None => Ok(0),
        Some((name, value)) if name == HEAD => number(value).map_err(|_| Stop::Damaged),
        Some((name, _)) => number(name).map_err(|_| Stop::Damaged),
    }
}

/// Neighboring pages, as the first one and what is in each.
fn runs(pages: BTreeMap<u16, Option<Node>>) -> Vec<(u16, Vec<Option<Node>>)> {
    let mut runs: Vec<(u16, Vec<Option<Node>>)> = Vec::new();
    for (page, node) in pages {
        match runs.last_mut() {
            Some((first, nodes)) if usize::from(*first) + nodes.len() == usize::from(page) => {
                nodes.push(node);
            }
            _ => runs.push((page, vec![node])),
        }
    }
    runs
}
