// SPDX-License-Identifier: Apache-2.0
//! Histories in the middle of which the disk loses, mixes up or spoils what it has.
//!
//! A store works for a while and is unmounted or cut off. Then some blocks of data and pages of maps
//! are damaged as bad disks do it: a bit is wrong; a block is again what it was some time ago, as
//! after a lost write; a block holds what belongs elsewhere, as after a misdirected write; a block
//! cannot be read. The store is mounted and goes on working, and in the end every block is asked
//! for. A block is either right or refused, after an unmount and after a cut: what the damage may hit is
//! vouched for by entries that are written behind it. A damaged journal may have the whole store
//! refused, and one copy of a superblock, index, bitmap or count page costs nothing.

use super::{Change, DISK_LENGTH, Model, Plan, Tally, format_options, generate, request};
use crate::{key, lay_out, settle};
use plinth_disks::memory::{Fault, FaultRule, MemoryDisk, Seed};
use plinth_store::{
    Access, DiskError, IoBuffer, MountError, Store, StoreAnswer, StoreOptions, StoreRefusal,
    StoreRequest, StoreState, StoreTag,
};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

const PAGE: u64 = 4096;
const JOURNAL: u64 = 65536;
const SECTOR: u32 = 512;
/// Blocks of an object that the workload uses, and some that it does not.
const RANGES: [(u32, u32); 2] = [(0, 48), (496, 48)];

/// What was damaged.
#[derive(Debug, Default)]
struct Damage {
    data: BTreeSet<u64>,
    maps: BTreeSet<u64>,
    /// Pages that exist twice, of which one copy may be lost; by the first byte of the pair.
    pairs: BTreeSet<u64>,
    journal: BTreeSet<u64>,
    words: Vec<String>,
}

struct World {
    store: Store<MemoryDisk>,
    state: BTreeMap<u64, Model>,
    /// Every acknowledged step.
    done: Vec<Vec<Change>>,
}

fn page(disk: &MemoryDisk, at: u64) -> [u8; 4096] {
    let mut bytes = [0; 4096];
    disk.peek(at, &mut bytes);
    bytes
}

impl Plan {
    /// Runs half of the steps, damages the disk, runs the rest, and looks at everything.
    pub(crate) fn run_with_damage(&self, tally: &mut Tally) -> Result<(), String> {
        let told = |error: String| format!("seed {}: {error}", self.seed);
        let mut seed = Seed(self.seed);
        let steps = generate(&mut seed, self.steps, self.mix);
        let mut disk = MemoryDisk::new(DISK_LENGTH);
        disk.set_atomic_write_size(self.atomic);
        Store::format(&mut disk, &format_options()).map_err(|e| told(e.to_string()))?;
        let store = Store::mount(disk, self.options()).map_err(|e| told(e.to_string()))?;
        let mut world = World { store, state: BTreeMap::new(), done: Vec::new() };
        let (third, half) = (steps.len() / 3, steps.len() / 2);
        world.work(&steps[..third], tally);
        let disk = world.store.unmount();
        let old: Vec<[u8; 4096]> =
            (0..DISK_LENGTH / PAGE).map(|at| page(&disk, at * PAGE)).collect();
        world.store = Store::mount(disk, self.options()).map_err(|e| told(e.to_string()))?;
        world.work(&steps[third..half], tally);
        // Where blocks are overwritten in place a cut leaves halves whose blocks are taken as they
        // are: what a disk spoils there before the next mount cannot be told from an overwrite.
        let is_cut = self.atomic < 4096 && seed.one_in(3);
        // Either a quiet time, in which the store vouches by itself with one entry, or entries
        // behind, more than are damaged: so that all before them is vouched for.
        let is_quiet = is_cut && seed.one_in(2);
        if is_quiet {
            world.rest();
        } else if is_cut {
            for value in 0..4_u8 {
                world.vouch(value)?;
            }
        }
        let mut disk = if is_cut { world.store.abandon() } else { world.store.unmount() };
        let most = if is_quiet { 1 } else { 3 };
        let damage = damage(&mut disk, &old, (is_cut, most), &mut seed);
        tally.damaged += damage.words.len() as u64;
        tally.tables += damage.pairs.len() as u64;
        let mounted = Store::mount(&mut disk, self.options()).map(drop);
        if let (Err(MountError::Journal { .. }), true) = (&mounted, !damage.journal.is_empty()) {
            tally.journals += 1;
            let options = StoreOptions { access: Access::Rescue, ..self.options() };
            let writes = disk.writes_completed();
            world.store = Store::mount(disk, options).map_err(|e| told(e.to_string()))?;
            let rescued = world.look_for_anything_else(writes, tally);
            return rescued.map_err(|error| told(format!("{:?}: {error}", damage.words)));
        }
        let mounted = Store::mount(disk, self.options());
        world.store = mounted.map_err(|e| told(format!("{e}; {:?}", damage.words)))?;
        // After a cut nobody knows where the store is, so it does no more work on top.
        if !is_cut {
            world.work(&steps[half..], tally);
        }
        let looked = world.look(&damage, tally);
        looked.map_err(|error| told(format!("cut {is_cut}, {:?}: {error}", damage.words)))
    }
}

/// The pages of a disk by what they are.
struct Places {
    data: Vec<u64>,
    maps: Vec<u64>,
    tables: Vec<u64>,
    journal: Vec<u64>,
}

fn places(disk: &MemoryDisk) -> Places {
    let all: Vec<u64> = (0..DISK_LENGTH / PAGE).map(|index| index * PAGE).collect();
    let is_of = |at: u64, kinds: &[&[u8]]| {
        let bytes = page(disk, at);
        kinds.iter().any(|magic| bytes.starts_with(magic))
    };
    let of = |kinds: &[&[u8]]| -> Vec<u64> {
        all.iter().copied().filter(|&at| is_of(at, kinds)).collect()
    };
    let maps = of(&[b"PLNmap"]);
    let first = maps.last().copied().unwrap_or(DISK_LENGTH) + PAGE;
    let is_used = |&at: &u64| page(disk, at) != [0; 4096];
    let data = all.iter().copied().filter(|&at| at >= first).filter(is_used).collect();
    let limits = format_options().limits.expect("the histories choose them");
    let ring = (JOURNAL..JOURNAL + limits.journal_length).step_by(PAGE as usize);
    let tables = of(&[b"PLNsuper", b"PLNindex", b"PLNbits", b"PLNcount"]);
    Places { data, maps, tables, journal: ring.filter(is_used).collect() }
}

/// Damages one block or a few. After a cut the journal is a place too.
fn damage(
    disk: &mut MemoryDisk,
    old: &[[u8; 4096]],
    (is_cut, most): (bool, u64),
    seed: &mut Seed,
) -> Damage {
    let Places { data, maps, tables, journal } = places(disk);
    let mut damage = Damage::default();
    for _ in 0..1 + seed.below(most) {
        let what = seed.below(if is_cut { 8 } else { 6 });
        let places = match what {
            0 | 1 => &maps,
            2..4 => &data,
            4 | 5 => &tables,
            _ => &journal,
        };
        if places.is_empty() {
            continue;
        }
        let pick = |seed: &mut Seed| places[seed.below(places.len() as u64) as usize];
        let at = pick(seed);
        let pair = if at < JOURNAL { 0 } else { (at - JOURNAL) / (2 * PAGE) * 2 * PAGE + JOURNAL };
        if matches!(what, 4 | 5) && !damage.pairs.insert(pair) {
            continue;
        }
        let before = page(disk, at);
        let word = match seed.below(4) {
            0 => {
                let mut bytes = before;
                bytes[seed.below(PAGE) as usize] ^= 1 << seed.below(8);
                disk.overwrite(at, &bytes);
                "a wrong bit"
            }
            1 => {
                disk.overwrite(at, &old[(at / PAGE) as usize]);
                "a lost write"
            }
            2 => {
                // Of maps mostly another page of the same object, which has much in common.
                let near = ((at / PAGE) ^ (1 + seed.below(3))) * PAGE;
                let from =
                    if seed.one_in(3) || !places.contains(&near) { pick(seed) } else { near };
                let bytes = page(disk, from);
                disk.overwrite(at, &bytes);
                "a misdirected write"
            }
            _ => {
                let fault = Fault::Fail(DiskError::Device { errno: 5 });
                let bytes = at..at + PAGE;
                disk.add_rule(FaultRule {
                    is_write: false,
                    bytes,
                    skip: 0,
                    times: u32::MAX,
                    fault,
                });
                "a read error"
            }
        };
        match what {
            0 | 1 => _ = damage.maps.insert(at),
            2..4 => _ = damage.data.insert(at),
            4 | 5 => {}
            _ => _ = damage.journal.insert(at),
        }
        damage.words.push(format!("{word} at {at:#x}, kind {what}"));
    }
    damage
}

impl World {
    /// Writes something that nobody asks for, whose entry says that all before it was durable.
    fn vouch(&mut self, value: u8) -> Result<(), String> {
        let (buffer, length) = lay_out(0, &[value; 512]);
        let write = StoreRequest::Write { key: key(60), offset: 0, length, buffer };
        let taken = self.store.submit(StoreTag(0), write);
        taken.map_err(|_| "no room for a request".to_owned())?;
        settle(&mut self.store);
        Ok(())
    }

    /// Leaves the store alone for longer than anything of it waits.
    fn rest(&mut self) {
        for now in 1..200 {
            let mut done = Vec::new();
            self.store.poll(Duration::from_millis(now * 100), &mut done);
        }
    }

    fn work(&mut self, steps: &[Vec<Change>], tally: &mut Tally) {
        for step in steps {
            let taken = self.store.submit(StoreTag(0), request(step));
            assert!(taken.is_ok(), "the store has room for one request");
            let done = settle(&mut self.store).pop().expect("a request has an end");
            if !matches!(done.result, Ok(StoreAnswer::Changed { .. })) {
                tally.refused += 1;
                continue;
            }
            tally.acknowledged += 1;
            for change in step {
                change.apply(&mut self.state);
            }
            self.done.push(step.clone());
        }
    }

    fn read(&mut self, object: u64, block: u32) -> Result<Vec<u8>, StoreRefusal> {
        let (key, buffer) = (key(u128::from(object)), IoBuffer::zeroed(4096));
        let read = StoreRequest::Read { key, offset: block * 4096, length: 4096, buffer };
        assert!(self.store.submit(StoreTag(0), read).is_ok(), "the store has room for one request");
        let done = settle(&mut self.store).pop().expect("a read has an end");
        done.result.map(|_| done.buffer.expect("a read gives its buffer back").as_bytes().to_vec())
    }

    /// What a mount for rescue reads was right at some time, and it is not written to.
    fn look_for_anything_else(&mut self, writes: u64, tally: &mut Tally) -> Result<(), String> {
        let (mut state, mut known) = (BTreeMap::new(), BTreeSet::new());
        for change in self.done.iter().flatten() {
            change.apply(&mut state);
            for (&object, model) in &state {
                let sectors = model.sectors.iter();
                known.extend(sectors.map(|(&sector, &value)| (object, sector, value)));
            }
        }
        for object in 0..super::OBJECTS {
            for block in RANGES.iter().flat_map(|&(first, count)| first..first + count) {
                let Ok(bytes) = self.read(object, block) else {
                    tally.bad_blocks += 1;
                    continue;
                };
                for (sector, bytes) in (block * 8..).zip(bytes.chunks_exact(SECTOR as usize)) {
                    let found = bytes.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
                    let is_whole = bytes.chunks_exact(8).all(|word| word == found.to_le_bytes());
                    if !is_whole || (found != 0 && !known.contains(&(object, sector, found))) {
                        return Err(format!("object {object} sector {sector} never was {found}"));
                    }
                    tally.rescued += u64::from(found != 0);
                }
            }
        }
        let (buffer, length) = lay_out(0, &[7; 4096]);
        let write = StoreRequest::Write { key: key(50), offset: 0, length, buffer };
        assert!(self.store.submit(StoreTag(0), write).is_ok(), "there is room for one request");
        match settle(&mut self.store).pop().map(|done| done.result) {
            Some(Err(StoreRefusal::ReadOnly)) => {}
            other => return Err(format!("a change is answered with {other:?}")),
        }
        match self.store.disk().writes_completed() - writes {
            0 => Ok(()),
            more => Err(format!("{more} writes for a rescue")),
        }
    }

    /// Reads every block by itself, and writes a new object: the disk lives on.
    fn look(&mut self, damage: &Damage, tally: &mut Tally) -> Result<(), String> {
        let mut bad = BTreeSet::new();
        for object in 0..super::OBJECTS {
            for (first, count) in RANGES {
                for block in first..first + count {
                    match self.read(object, block) {
                        Ok(bytes) => self.compare(object, block, &bytes)?,
                        Err(StoreRefusal::BadMetadata { .. }) if !damage.maps.is_empty() => {
                            tally.lost_maps += 1;
                        }
                        Err(
                            StoreRefusal::BadBlock { key: at, block: named }
                            | StoreRefusal::ReadFailed { key: at, block: named },
                        ) if at == key(u128::from(object)) && named == block => {
                            bad.insert((at, block));
                        }
                        Err(other) => return Err(format!("object {object} {block}: {other}")),
                    }
                }
            }
        }
        tally.bad_blocks += bad.len() as u64;
        let counters = self.store.counters();
        if counters.bad_blocks + counters.read_errors < bad.len() as u64 {
            return Err(format!("{} bad blocks, and not all are counted", bad.len()));
        }
        for &(at, block) in &bad {
            let named = self.store.bad_blocks().find(|one| (one.key, one.block) == (at, block));
            let named = named.ok_or(format!("block {block} of {at} is not named"))?;
            if !damage.data.contains(&named.offset) && damage.maps.is_empty() {
                return Err(format!("block {block} at {:#x} is bad by itself", named.offset));
            }
        }
        if self.store.state() != StoreState::Writable {
            return Err(format!("the store is {:?}", self.store.state()));
        }
        let (buffer, length) = lay_out(0, &[7; 4096]);
        let write = StoreRequest::Write { key: key(50), offset: 0, length, buffer };
        assert!(
            self.store.submit(StoreTag(0), write).is_ok(),
            "the store has room for one request"
        );
        match settle(&mut self.store).pop().map(|done| done.result) {
            // It may have got a block that cannot be read.
            Some(Ok(_)) => match self.read(50, 0) {
                Ok(bytes) if bytes == [7; 4096] => Ok(()),
                Err(StoreRefusal::ReadFailed { .. }) if !damage.data.is_empty() => Ok(()),
                other => Err(format!("a new object has {:?}", other.map(|bytes| bytes[0]))),
            },
            Some(Err(StoreRefusal::NoSpace)) => Ok(()),
            other => Err(format!("a new object is answered with {other:?}")),
        }
    }

    fn compare(&self, object: u64, block: u32, bytes: &[u8]) -> Result<(), String> {
        let sectors = self.state.get(&object).map(|model| &model.sectors);
        for (sector, bytes) in (block * 8..).zip(bytes.chunks_exact(SECTOR as usize)) {
            let found = bytes.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
            let is_whole = bytes.chunks_exact(8).all(|word| word == found.to_le_bytes());
            let right = sectors.and_then(|sectors| sectors.get(&sector)).copied().unwrap_or(0);
            if !is_whole || found != right {
                return Err(format!("object {object} sector {sector} is {found}, not {right}"));
            }
        }
        Ok(())
    }
}
