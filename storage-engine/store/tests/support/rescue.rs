// SPDX-License-Identifier: Apache-2.0
//! Mounts for rescue at every cut of a history, whole and with a damaged journal.
//!
//! * After a cut alone a rescue reads what an ordinary mount reads, block by block, or refuses a
//!   block; and refuses just those blocks that the ordinary mount took as they are, under a mark.
//! * With one entry of the journal damaged too, each sector is what it was at some time, or its
//!   block is refused. Numbers are written once in a history, so what is another object's is seen.
//! * Neither writes anything.

use super::{Change, Cutter, DISK_LENGTH, Plan, Step, Tally, generate};
use crate::{key, settle};
use plinth_disks::memory::{MemoryDisk, Seed};
use plinth_store::{Access, IoBuffer, Store, StoreOptions, StoreRefusal, StoreRequest, StoreTag};
use std::collections::{BTreeMap, BTreeSet};

const BLOCK: u32 = 4096;
/// Blocks of an object that the workload uses, and some that it does not.
const RANGES: [(u32, u32); 2] = [(0, 48), (496, 48)];
/// Damaged entries for each cut.
const DAMAGED: usize = 2;

/// Values by object and sector.
type Known = BTreeSet<(u64, u32, u64)>;
type Block = Result<Vec<u8>, StoreRefusal>;

impl Plan {
    /// Runs the history once to learn which steps are refused, and once with cuts.
    pub(crate) fn run_for_rescue(&self, tally: &mut Tally) -> Result<(), String> {
        let steps = generate(&mut Seed(self.seed), self.steps, self.mix);
        tally.histories += 1;
        let refused = self.drive(&steps, &mut |_, _| Ok(()))?;
        let known = ever(&steps, &refused);
        let mut cutter = Cutter::new(self.seed, self.cuts);
        let mut seed = Seed(self.seed ^ 0x7e5c);
        self.drive(&steps, &mut |store, progress| {
            let acknowledged = progress.acknowledged.iter().filter(|&&is| is).count() as u64;
            for cut in cutter.cuts(store.disk(), acknowledged, tally) {
                tally.cuts += 1;
                let told = |error: String| format!("seed {} {cut:?}: {error}", self.seed);
                let again = || store.disk().cut(cut);
                self.compare_with_whole(again(), again(), tally).map_err(told)?;
                let entries = entries(&again());
                for _ in 0..DAMAGED.min(entries.len()) {
                    let at = entries[seed.below(entries.len() as u64) as usize];
                    let mut disk = again();
                    let mut page = [0; BLOCK as usize];
                    disk.peek(at, &mut page);
                    page[seed.below(512) as usize] ^= 1 << seed.below(8);
                    disk.overwrite(at, &page);
                    let told = |error| told(format!("journal damaged at {at:#x}: {error}"));
                    self.look_for_foreign(disk, &known, tally).map_err(told)?;
                }
            }
            Ok(())
        })?;
        Ok(())
    }

    fn rescue(&self, disk: MemoryDisk) -> Result<Store<MemoryDisk>, String> {
        let options = StoreOptions { access: Access::Rescue, ..self.options() };
        Store::mount(disk, options).map_err(|error| format!("the rescue is refused: {error}"))
    }

    fn compare_with_whole(
        &self,
        disk: MemoryDisk,
        twin: MemoryDisk,
        tally: &mut Tally,
    ) -> Result<(), String> {
        let whole = Store::mount(disk, self.options());
        let mut whole = whole.map_err(|error| format!("the mount is refused: {error}"))?;
        let writes = twin.writes_completed();
        let mut rescue = self.rescue(twin)?;
        if let Some(lost) = rescue.rescued_from() {
            return Err(format!("a cut alone loses something: {lost}"));
        }
        let mut refused = 0;
        for object in 0..super::OBJECTS {
            let at = key(u128::from(object));
            let (right, found) = (whole.object(&at), rescue.object(&at));
            if right.map(|facts| facts.size) != found.map(|facts| facts.size) {
                return Err(format!("object {object} is {found:?}, and should be {right:?}"));
            }
            for block in blocks() {
                let right = read(&mut whole, object, block);
                match read(&mut rescue, object, block) {
                    found if found == right => tally.rescued += u64::from(has_some(&found)),
                    Err(StoreRefusal::BadBlock { .. }) => refused += 1,
                    other => {
                        let numbers = |block: Block| block.map(|bytes| number(&bytes));
                        let (found, right) = (numbers(other), numbers(right));
                        return Err(format!("object {object} {block}: {found:?} for {right:?}"));
                    }
                }
            }
        }
        let adopted = whole.counters().adopted_blocks;
        tally.adopted += adopted;
        if refused != adopted {
            return Err(format!("{refused} blocks are refused, {adopted} taken as they are"));
        }
        is_as_it_was(&rescue, writes)
    }

    fn look_for_foreign(
        &self,
        disk: MemoryDisk,
        known: &Known,
        tally: &mut Tally,
    ) -> Result<(), String> {
        let writes = disk.writes_completed();
        let mut rescue = self.rescue(disk)?;
        tally.journals += u64::from(rescue.rescued_from().is_some());
        for object in 0..super::OBJECTS {
            for block in blocks() {
                let Ok(bytes) = read(&mut rescue, object, block) else {
                    tally.bad_blocks += 1;
                    continue;
                };
                for (sector, bytes) in (block * 8..).zip(bytes.chunks_exact(512)) {
                    let found = number(bytes);
                    let is_whole = bytes.chunks_exact(8).all(|word| word == found.to_le_bytes());
                    if !is_whole || (found != 0 && !known.contains(&(object, sector, found))) {
                        return Err(format!("object {object} sector {sector} never was {found}"));
                    }
                    tally.rescued += u64::from(found != 0);
                }
            }
        }
        is_as_it_was(&rescue, writes)
    }
}

/// Everything that any sector ever was.
fn ever(steps: &[Step], refused: &[bool]) -> Known {
    let (mut state, mut known) = (BTreeMap::new(), Known::new());
    let done = steps.iter().zip(refused).filter(|(_, is_refused)| !**is_refused);
    for change in done.flat_map(|(step, _)| step) {
        Change::apply(change, &mut state);
        for (&object, model) in &state {
            let sectors = model.sectors.iter();
            known.extend(sectors.map(|(&sector, &value)| (object, sector, value)));
        }
    }
    known
}

/// Where entries of the journal begin.
fn entries(disk: &MemoryDisk) -> Vec<u64> {
    let is_entry = |&at: &u64| {
        let mut magic = [0; 8];
        disk.peek(at, &mut magic);
        magic == *b"PLNentry"
    };
    (0..DISK_LENGTH).step_by(BLOCK as usize).filter(is_entry).collect()
}

fn blocks() -> impl Iterator<Item = u32> {
    RANGES.into_iter().flat_map(|(first, count)| first..first + count)
}

fn number(bytes: &[u8]) -> u64 {
    bytes.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

fn has_some(block: &Block) -> bool {
    block.as_ref().is_ok_and(|bytes| bytes.iter().any(|&byte| byte != 0))
}

fn is_as_it_was(rescue: &Store<MemoryDisk>, before: u64) -> Result<(), String> {
    match rescue.disk().writes_completed() - before {
        0 => Ok(()),
        more => Err(format!("{more} writes for a rescue")),
    }
}

fn read(store: &mut Store<MemoryDisk>, object: u64, block: u32) -> Block {
    let buffer = IoBuffer::zeroed(BLOCK as usize);
    let (key, offset) = (key(u128::from(object)), block * BLOCK);
    let read = StoreRequest::Read { key, offset, length: BLOCK, buffer };
    assert!(store.submit(StoreTag(0), read).is_ok(), "the store has room for one request");
    let done = settle(store).pop().expect("a read has an end");
    done.result.map(|_| done.buffer.expect("a read gives its buffer back").as_bytes().to_vec())
}
