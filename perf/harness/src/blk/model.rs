// SPDX-License-Identifier: Apache-2.0
//! What each block may hold: the law that verify mode holds a disk to.
//!
//! * While the backend lives, a read returns the newest acknowledged version.
//! * When it dies, versions acknowledged since the last completed flush may be gone: each block
//!   then holds the version of the last flush or any acknowledged since. The first read after
//!   the restart says which, and from then on it must stay.
//! * A write that failed leaves, per block, the old version or the new one.
//!
//! The client keeps at most one request on a block at a time, so that no read races a write and
//! every answer is either legal or not.

use super::stamp::{Found, Version};
use std::collections::{BTreeMap, BTreeSet};

/// The order in which writes were acknowledged. A flush covers what was before it.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct AckNumber(u64);

/// A read that the law does not allow.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("block {block} holds {found:?}, legal is {legal:?} ({restarts} restarts so far)")]
pub(crate) struct Mismatch {
    pub block: u64,
    pub found: Found,
    pub legal: Vec<Version>,
    pub restarts: u64,
}

#[derive(Clone, Debug)]
struct Block {
    /// What a crash may fall back to: one version, unless that was never read after a crash.
    durable: Vec<Version>,
    /// Acknowledged since the last flush, in order.
    volatile: Vec<(AckNumber, Version)>,
    /// Whether only the newest is legal, or any of the two lists.
    is_known: bool,
}

impl Block {
    fn legal(&self) -> Vec<Version> {
        let newest = self.volatile.last().map(|(_, version)| *version);
        match newest {
            Some(version) if self.is_known => vec![version],
            _ => {
                let volatile = self.volatile.iter().map(|(_, version)| *version);
                self.durable.iter().copied().chain(volatile).collect()
            }
        }
    }
}

/// Never-written blocks are not in the map.
#[derive(Debug)]
pub(crate) struct Model {
    blocks: BTreeMap<u64, Block>,
    /// Blocks with a volatile version.
    dirty: BTreeSet<u64>,
    acknowledged: AckNumber,
    restarts: u64,
    /// Acknowledged versions that a crash took, as the law allows.
    rolled_back: u64,
    is_zeroed: bool,
}

impl Model {
    /// With `is_zeroed`, a block that was never written must read as zeroes; else anything goes.
    pub(crate) const fn new(is_zeroed: bool) -> Self {
        Self {
            blocks: BTreeMap::new(),
            dirty: BTreeSet::new(),
            acknowledged: AckNumber(0),
            restarts: 0,
            rolled_back: 0,
            is_zeroed,
        }
    }

    /// A write of `version` to `block` was acknowledged.
    pub(crate) fn written(&mut self, block: u64, version: Version) {
        self.acknowledged.0 += 1;
        let acknowledged = self.acknowledged;
        let entry = self.entry(block);
        entry.volatile.push((acknowledged, version));
        entry.is_known = true;
        self.dirty.insert(block);
    }

    /// A write of `version` to `block` ended with an error: old and new are both legal.
    pub(crate) fn failed(&mut self, block: u64, version: Version) {
        self.acknowledged.0 += 1;
        let acknowledged = self.acknowledged;
        let entry = self.entry(block);
        if entry.is_known {
            // What was certain before is one of two possibilities from here on.
            entry.durable = entry.legal().into_iter().chain(entry.durable.drain(..)).collect();
        }
        entry.volatile.push((acknowledged, version));
        entry.is_known = false;
        self.dirty.insert(block);
    }

    /// What a flush that is submitted at this moment will cover.
    pub(crate) const fn flush_begins(&self) -> AckNumber {
        self.acknowledged
    }

    /// A flush was acknowledged that began at `covers`.
    pub(crate) fn flushed(&mut self, covers: AckNumber) {
        let mut still_dirty = BTreeSet::new();
        for block in std::mem::take(&mut self.dirty) {
            let Some(entry) = self.blocks.get_mut(&block) else { continue };
            let later = entry.volatile.partition_point(|(number, _)| *number <= covers);
            let covered: Vec<_> = entry.volatile.drain(..later).map(|(_, v)| v).collect();
            match covered.last() {
                Some(newest) if entry.is_known => entry.durable = vec![*newest],
                // It is not known which of them the flush found.
                _ => entry.durable.extend(covered),
            }
            if !entry.volatile.is_empty() {
                still_dirty.insert(block);
            }
        }
        self.dirty = still_dirty;
    }

    /// The backend died, whether or not we have seen it live since the last time.
    pub(crate) fn died(&mut self) {
        for block in &self.dirty {
            if let Some(entry) = self.blocks.get_mut(block) {
                entry.is_known = false;
            }
        }
    }

    /// Judges what a read of `block` found.
    ///
    /// # Errors
    /// When the law does not allow it.
    pub(crate) fn read(&mut self, block: u64, found: Found) -> Result<(), Mismatch> {
        let restarts = self.restarts;
        let Some(entry) = self.blocks.get_mut(&block) else {
            if self.is_zeroed && found != Found::Zeroes {
                return Err(Mismatch { block, found, legal: vec![Version(0)], restarts });
            }
            return Ok(());
        };
        let legal = entry.legal();
        let version = match found {
            Found::Version(version) => version,
            // Version 0 is what was there before the first write, which only a zeroed disk
            // promises; on any other disk every fallback to it is legal.
            Found::Zeroes => Version(0),
            _ if !self.is_zeroed && legal.contains(&Version(0)) => Version(0),
            _ => return Err(Mismatch { block, found, legal, restarts }),
        };
        if !legal.contains(&version) {
            return Err(Mismatch { block, found, legal, restarts });
        }
        if !entry.is_known {
            let newest = entry.volatile.last().map(|(_, newest)| *newest);
            self.rolled_back += u64::from(newest.is_some_and(|newest| newest != version));
            // What was read must stay while this backend lives, but a flush is still needed to
            // make it survive the next one.
            let number = entry.volatile.last().map_or(AckNumber(0), |(number, _)| *number);
            if entry.volatile.is_empty() {
                entry.durable = vec![version];
            } else {
                let volatile = entry.volatile.drain(..).map(|(_, v)| v).collect::<Vec<_>>();
                entry.durable.extend(volatile);
                entry.volatile.push((number, version));
            }
            entry.is_known = true;
        }
        Ok(())
    }

    /// Every block that was written in this run.
    pub(crate) fn written_blocks(&self) -> impl Iterator<Item = u64> {
        self.blocks.keys().copied()
    }

    /// A new backend has our rings.
    pub(crate) const fn came_back(&mut self) {
        self.restarts += 1;
    }

    pub(crate) const fn restarts(&self) -> u64 {
        self.restarts
    }

    pub(crate) const fn rolled_back(&self) -> u64 {
        self.rolled_back
    }

    fn entry(&mut self, block: u64) -> &mut Block {
        self.blocks.entry(block).or_insert_with(|| Block {
            durable: vec![Version(0)],
            volatile: Vec::new(),
            is_known: true,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn v(version: u64) -> Found {
        Found::Version(Version(version))
    }

    fn written(versions: &[u64]) -> Model {
        let mut model = Model::new(true);
        versions.iter().for_each(|version| model.written(1, Version(*version)));
        model
    }

    #[test]
    fn only_the_newest_version_is_legal_while_the_backend_lives() {
        let mut model = written(&[1, 2]);
        assert!(model.read(1, v(1)).is_err());
        assert!(model.read(1, Found::Zeroes).is_err());
        assert!(model.read(1, Found::Foreign).is_err());
        assert_eq!(model.read(1, v(2)), Ok(()));
    }

    #[test]
    fn a_flushed_version_survives_a_restart() {
        let mut model = written(&[1]);
        let covers = model.flush_begins();
        model.flushed(covers);
        model.died();
        assert!(model.read(1, Found::Zeroes).is_err());
        assert_eq!(model.read(1, v(1)), Ok(()));
    }

    #[test]
    fn an_unflushed_version_may_be_lost_but_then_stays_lost() {
        let mut model = written(&[1, 2]);
        model.died();
        assert_eq!(model.read(1, v(1)), Ok(()));
        assert_eq!(model.rolled_back(), 1);
        assert!(model.read(1, v(2)).is_err());
        assert_eq!(model.read(1, v(1)), Ok(()));
    }

    #[test]
    fn what_was_read_after_a_restart_is_durable_only_after_a_flush() {
        let mut model = written(&[1, 2]);
        model.died();
        assert_eq!(model.read(1, v(2)), Ok(()));
        model.died();
        assert_eq!(model.read(1, v(1)), Ok(()));
        let covers = model.flush_begins();
        model.flushed(covers);
        model.died();
        assert!(model.read(1, v(2)).is_err());
        assert_eq!(model.read(1, v(1)), Ok(()));
    }

    #[test]
    fn a_flush_does_not_cover_what_was_acknowledged_after_it_began() {
        let mut model = written(&[1]);
        let covers = model.flush_begins();
        model.written(1, Version(2));
        model.flushed(covers);
        model.died();
        assert_eq!(model.read(1, v(1)), Ok(()));
        let mut model = written(&[1]);
        let covers = model.flush_begins();
        model.written(1, Version(2));
        model.flushed(covers);
        model.died();
        assert!(model.read(1, Found::Zeroes).is_err());
    }

    #[test]
    fn a_flush_after_a_restart_keeps_what_is_not_known_open() {
        let mut model = written(&[1, 2]);
        model.died();
        let covers = model.flush_begins();
        model.flushed(covers);
        assert_eq!(model.read(1, v(1)), Ok(()));
        assert!(model.read(1, v(2)).is_err());
    }

    #[test]
    fn a_failed_write_leaves_old_or_new_and_nothing_else() {
        for (found, is_legal) in [(v(1), true), (v(2), true), (v(3), false)] {
            let mut model = written(&[1]);
            model.failed(1, Version(2));
            assert_eq!(model.read(1, found).is_ok(), is_legal, "{found:?}");
        }
    }

    #[test]
    fn a_block_that_was_never_written_is_zero_only_where_promised() {
        assert!(Model::new(true).read(1, Found::Foreign).is_err());
        assert_eq!(Model::new(true).read(1, Found::Zeroes), Ok(()));
        assert_eq!(Model::new(false).read(1, Found::Foreign), Ok(()));
    }

    #[test]
    fn faults_that_name_a_legal_version_are_faults_all_the_same() {
        let mut model = written(&[1]);
        let misdirected = Found::Misdirected { block: 2, version: Version(1) };
        assert!(model.read(1, misdirected).is_err());
        assert!(model.read(1, Found::Corrupt { version: Version(1), at: 40 }).is_err());
    }
}
