// SPDX-License-Identifier: Apache-2.0
//! Volumes on a memory disk beside a slow model of them: a map from sectors to values for each
//! volume, and whole copies of it for snapshots and clones.

use plinth_disks::memory::{Cache, Cut, MemoryDisk, Seed};
use plinth_ids::{PoolId, SnapshotId, VolumeId};
use plinth_store::{FormatOptions, IoBuffer, LayoutLimits, Store, StoreOptions};
use plinth_volume::{
    ChangedRange, Changes, Omit, SnapshotSpec, VolumeAnswer, VolumeCompletion, VolumeHandle,
    VolumeRefusal, VolumeRequest, VolumeSpec, VolumeTag, VolumeUsage, Volumes,
};
use std::collections::BTreeMap;
use std::time::Duration;

pub(crate) type Pool = Volumes<Store<MemoryDisk>>;
/// What is not zero, by sector.
pub(crate) type Sectors = BTreeMap<u64, u64>;

const POOL: PoolId = PoolId(1);
const DISK: u64 = 48 << 20;
const OBJECT: u64 = 8192;
/// The blocks of each object that are looked at, and the sectors of each block.
const BLOCKS: [u64; 6] = [0, 1, 7, 8, 500, 1023];
const PLACES: [u64; 2] = [0, 5];
/// Three objects and a half.
const SIZE: u64 = (3 * OBJECT + 4096) * 512;
const GROWN: u64 = 6 * OBJECT * 512;
const VOLUMES: usize = 5;
const SNAPSHOTS: usize = 4;

#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Model {
    pub(crate) size: u64,
    pub(crate) head: Sectors,
    pub(crate) snapshots: BTreeMap<u64, (u64, Sectors)>,
    /// The snapshot that a clone was asked for from, while it is a clone.
    pub(crate) parent: Option<(u64, Option<u64>)>,
}

#[derive(Clone, Debug)]
pub(crate) enum Action {
    /// Sectors, all with this value.
    Write {
        volume: u64,
        sector: u64,
        count: u64,
        value: u64,
    },
    Zero {
        volume: u64,
        sector: u64,
        count: u64,
        is_discard: bool,
    },
    Create {
        volume: u64,
    },
    Clone {
        source: u64,
        snapshot: Option<u64>,
        volume: u64,
    },
    Delete {
        volume: u64,
    },
    Grow {
        volume: u64,
    },
    Snapshot {
        volume: u64,
        snapshot: u64,
    },
    Leave {
        volume: u64,
        snapshot: u64,
    },
    Rollback {
        volume: u64,
        snapshot: u64,
    },
    Flatten {
        volume: u64,
    },
}

/// What happened, so that a run that did nothing is noticed.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) done: u64,
    pub(crate) refused: u64,
    pub(crate) cuts: u64,
    pub(crate) cut_off: u64,
    pub(crate) restarts: u64,
    pub(crate) freed: u64,
    /// Volumes of several snapshots that all went, with what was announced.
    pub(crate) cleared: u64,
    pub(crate) diffs: u64,
}

pub(crate) struct World {
    pub(crate) pool: Option<Pool>,
    pub(crate) models: BTreeMap<u64, Model>,
    handles: BTreeMap<u64, VolumeHandle>,
    seed: Seed,
    next: u64,
    omit: Omit,
    /// A volume was deleted that clones stand on: it is there, and nobody sees it.
    has_hidden: bool,
    pub(crate) tally: Tally,
}

type Outcome<T> = Result<T, String>;

fn bytes_of(sectors: u64) -> u64 {
    sectors * 512
}

pub(crate) fn settle(pool: &mut Pool) -> Outcome<Vec<VolumeCompletion>> {
    let mut done = Vec::new();
    for _ in 0..200_000 {
        pool.poll(Duration::ZERO, &mut done);
        if pool.is_idle() {
            return Ok(done);
        }
    }
    Err(format!("the volumes are stuck: {}", pool.store().waits()))
}

fn run(pool: &mut Pool, request: VolumeRequest) -> Outcome<VolumeCompletion> {
    pool.submit(VolumeTag(1), request).map_err(|_| "no room for one request")?;
    let mut done = settle(pool)?;
    let last = done.pop().ok_or("a request without an end")?;
    if done.is_empty() { Ok(last) } else { Err("one request, one end".to_owned()) }
}

/// The values of all sectors that are looked at.
pub(crate) fn read_all(pool: &mut Pool, handle: VolumeHandle) -> Outcome<Sectors> {
    let size = pool.size(handle).map_err(|refusal| format!("{refusal}"))?;
    let mut found = Sectors::new();
    for start in (0..size / 512).step_by(8) {
        if !BLOCKS.contains(&(start / 8 % 1024)) {
            continue;
        }
        let (offset, length) = (bytes_of(start), 4096);
        let buffer = IoBuffer::zeroed(4096);
        let sight = pool.sight(handle, offset, length);
        let shown = sight.and_then(|sight| pool.view(&sight).map(<[u8]>::to_vec));
        let request = VolumeRequest::Read { volume: handle, offset, length, buffer };
        let done = run(pool, request)?;
        done.result.map_err(|refusal| format!("reading sector {start}: {refusal:?}"))?;
        let buffer = done.buffer.ok_or("a read without a buffer")?;
        if shown.is_some_and(|shown| shown != buffer.as_bytes()) {
            return Err(format!("sector {start} looks different in the disk's memory"));
        }
        for place in PLACES {
            let at = usize::try_from(bytes_of(place)).map_err(|_| "small")?;
            let sector = &buffer.as_bytes()[at..at + 512];
            let value = u64::from_le_bytes(sector[..8].try_into().map_err(|_| "eight bytes")?);
            if sector.chunks_exact(8).any(|word| word != value.to_le_bytes()) {
                return Err(format!("sector {} is torn", start + place));
            }
            if value != 0 {
                found.insert(start + place, value);
            }
        }
    }
    Ok(found)
}

fn is_seen(sector: u64) -> bool {
    BLOCKS.contains(&(sector / 8 % 1024)) && PLACES.contains(&(sector % 8))
}

fn put(sectors: &mut Sectors, sector: u64, value: u64) {
    if value == 0 {
        sectors.remove(&sector);
    } else {
        sectors.insert(sector, value);
    }
}

impl Action {
    pub(crate) const fn volume(&self) -> u64 {
        match self {
            Self::Write { volume, .. }
            | Self::Zero { volume, .. }
            | Self::Create { volume }
            | Self::Clone { volume, .. }
            | Self::Delete { volume }
            | Self::Grow { volume }
            | Self::Snapshot { volume, .. }
            | Self::Leave { volume, .. }
            | Self::Rollback { volume, .. }
            | Self::Flatten { volume } => *volume,
        }
    }

    /// The sectors that it changes and what they are afterwards.
    fn changes(&self) -> Vec<(u64, u64)> {
        let (from, to, value) = match *self {
            Self::Write { sector, count, value, .. } => (sector, sector + count, value),
            Self::Zero { sector, count, is_discard: false, .. } => (sector, sector + count, 0),
            Self::Zero { sector, count, .. } => {
                (sector.next_multiple_of(8), (sector + count) / 8 * 8, 0)
            }
            _ => return Vec::new(),
        };
        (from..to).filter(|&sector| is_seen(sector)).map(|sector| (sector, value)).collect()
    }
}

impl World {
    pub(crate) fn new(seed: u64, omit: Omit) -> Outcome<Self> {
        let mut disk = MemoryDisk::new(DISK);
        let limits = LayoutLimits { journal_length: 1 << 20, slot_count: 1024 };
        let options = FormatOptions { id: [9; 16], limits: Some(limits) };
        Store::format(&mut disk, &options).map_err(|error| error.to_string())?;
        disk.restart(Cache::Volatile, seed);
        let mut world = Self {
            pool: None,
            models: BTreeMap::new(),
            handles: BTreeMap::new(),
            seed: Seed(seed),
            next: 1,
            omit,
            has_hidden: false,
            tally: Tally::default(),
        };
        world.mount(disk)?;
        Ok(world)
    }

    fn mount(&mut self, disk: MemoryDisk) -> Outcome<()> {
        let store = Store::mount(disk, StoreOptions::default());
        let store = store.map_err(|error| format!("mount: {error:?}"))?;
        let mut pool = Volumes::start(store, POOL);
        pool.set_omit(self.omit);
        settle(&mut pool)?;
        if !pool.broken().is_empty() {
            return Err(format!("{:?} cannot be understood", pool.broken()));
        }
        self.pool = Some(pool);
        self.handles.clear();
        Ok(())
    }

    pub(crate) fn pool(&mut self) -> Outcome<&mut Pool> {
        self.pool.as_mut().ok_or_else(|| "the pool is closed".to_owned())
    }

    fn handle(&mut self, volume: u64) -> Outcome<VolumeHandle> {
        if let Some(&handle) = self.handles.get(&volume) {
            return Ok(handle);
        }
        let handle = self.pool()?.attach(VolumeId(volume));
        let handle = handle.map_err(|refusal| format!("attaching {volume}: {refusal:?}"))?;
        self.handles.insert(volume, handle);
        Ok(handle)
    }

    fn detach(&mut self, volume: u64) -> Outcome<()> {
        let Some(handle) = self.handles.remove(&volume) else { return Ok(()) };
        self.pool()?.detach(handle).map_err(|refusal| format!("{refusal:?}"))
    }

    fn some_volume(&mut self) -> Option<u64> {
        let count = self.models.len() as u64;
        let at = usize::try_from(self.seed.below(count.max(1))).ok()?;
        self.models.keys().nth(at).copied()
    }

    fn some_snapshot(&mut self, volume: u64) -> Option<u64> {
        let draw = self.seed.draw();
        let snapshots = &self.models.get(&volume)?.snapshots;
        let at = draw % (snapshots.len() as u64).max(1);
        snapshots.keys().nth(usize::try_from(at).ok()?).copied()
    }

    fn fresh(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// A change of data.
    fn data_action(&mut self) -> Option<Action> {
        let volume = self.some_volume()?;
        let end = self.models.get(&volume)?.size / 512;
        let object = self.seed.below(end.div_ceil(OBJECT)) * OBJECT;
        let block = BLOCKS[usize::try_from(self.seed.below(6)).ok()?] * 8;
        let value = self.fresh() << 8;
        let (start, count) = match self.seed.below(8) {
            0 => (object + block + 5, 1),
            // Over the border of two objects, if there is another.
            1 => (object + OBJECT - 8, 16),
            2 => (object, OBJECT),
            3 => (object + 3, self.seed.below(OBJECT * 2) + 1),
            4 => (0, end),
            _ => (object + block, 8),
        };
        let sector = start.min(end - 1);
        let count = count.min(end - sector);
        if count > 4096 || self.seed.one_in(6) {
            let is_discard = self.seed.one_in(2);
            return Some(Action::Zero { volume, sector, count, is_discard });
        }
        let count = count.min(64);
        Some(Action::Write { volume, sector, count, value })
    }

    fn other_action(&mut self) -> Option<Action> {
        let volume = self.some_volume();
        if self.models.len() < 2 || volume.is_none() {
            return Some(Action::Create { volume: self.fresh() });
        }
        let volume = volume?;
        let taken = self.models.get(&volume)?.snapshots.len();
        let is_full = self.models.len() >= VOLUMES;
        Some(match self.seed.below(16) {
            0..=4 if taken < SNAPSHOTS => Action::Snapshot { volume, snapshot: self.fresh() },
            0..=6 => Action::Leave { volume, snapshot: self.some_snapshot(volume)? },
            7..=8 => Action::Rollback { volume, snapshot: self.some_snapshot(volume)? },
            9..=11 if !is_full => {
                let snapshot = self.some_snapshot(volume);
                Action::Clone { source: volume, snapshot, volume: self.fresh() }
            }
            12 => Action::Flatten { volume },
            13 => Action::Grow { volume },
            14 if !is_full => Action::Create { volume: self.fresh() },
            _ => Action::Delete { volume },
        })
    }

    fn request(&mut self, action: &Action) -> Outcome<VolumeRequest> {
        let name = |kind: &str, number: u64| format!("{kind}-{number}").parse();
        let spec = |volume: u64, size| VolumeSpec {
            volume: VolumeId(volume),
            name: name("v", volume).expect("a good name"),
            size,
            created_at: 1,
        };
        let volume = VolumeId(action.volume());
        Ok(match *action {
            Action::Write { volume, sector, count, value } => {
                let handle = self.handle(volume)?;
                let head = bytes_of(sector % 8);
                let length = head + bytes_of(count);
                let fits = |bytes: u64| usize::try_from(bytes).map_err(|_| "small".to_owned());
                let mut buffer = IoBuffer::zeroed(fits(length.next_multiple_of(4096))?);
                buffer.as_bytes_mut().fill(0xdb);
                let bytes = &mut buffer.as_bytes_mut()[fits(head)?..fits(length)?];
                for word in bytes.chunks_exact_mut(8) {
                    word.copy_from_slice(&value.to_le_bytes());
                }
                let length = u32::try_from(bytes_of(count)).map_err(|_| "small")?;
                VolumeRequest::Write { volume: handle, offset: bytes_of(sector), length, buffer }
            }
            Action::Zero { volume, sector, count, is_discard } => {
                let volume = self.handle(volume)?;
                let (offset, length) = (bytes_of(sector), bytes_of(count));
                if is_discard {
                    VolumeRequest::Discard { volume, offset, length }
                } else {
                    VolumeRequest::Zero { volume, offset, length }
                }
            }
            Action::Create { volume } => VolumeRequest::Create { spec: spec(volume, SIZE) },
            Action::Clone { source, snapshot, volume } => {
                let model = self.models.get(&source).ok_or("no such source")?;
                let of = snapshot.and_then(|snapshot| model.snapshots.get(&snapshot));
                let size = of.map_or(model.size, |(size, _)| *size);
                let snapshot = snapshot.map(SnapshotId);
                VolumeRequest::Clone {
                    source: VolumeId(source),
                    snapshot,
                    spec: spec(volume, size),
                }
            }
            Action::Delete { volume: number } => {
                self.detach(number)?;
                VolumeRequest::Delete { volume, wipe: number.is_multiple_of(2) }
            }
            Action::Grow { .. } => VolumeRequest::Grow { volume, size: GROWN, now: 2 },
            Action::Snapshot { snapshot, .. } => VolumeRequest::SnapshotCreate {
                spec: SnapshotSpec {
                    volume,
                    snapshot: SnapshotId(snapshot),
                    name: name("s", snapshot).expect("a good name"),
                    identity: [1; 16],
                    created_at: 3,
                },
            },
            Action::Leave { snapshot, .. } => {
                VolumeRequest::SnapshotDelete { volume, snapshot: SnapshotId(snapshot) }
            }
            Action::Rollback { volume: number, snapshot } => {
                self.detach(number)?;
                VolumeRequest::Rollback { volume, snapshot: SnapshotId(snapshot), now: 4 }
            }
            Action::Flatten { .. } => VolumeRequest::Flatten { volume },
        })
    }

    /// Some changes at once, of which no two meet, perhaps with something else beside them; the
    /// power may go in the middle.
    pub(crate) fn step(&mut self) -> Outcome<()> {
        let mut batch: Vec<Action> = Vec::new();
        for _ in 0..self.seed.below(6) {
            let Some(action) = self.data_action() else { continue };
            let touched: Vec<u64> = action.changes().iter().map(|(sector, _)| *sector).collect();
            let meets = |other: &Action| {
                other.volume() == action.volume()
                    && other.changes().iter().any(|(sector, _)| touched.contains(sector))
            };
            if !batch.iter().any(meets) {
                batch.push(action);
            }
        }
        if self.seed.one_in(2)
            && let Some(action) = self.other_action()
        {
            let volume = action.volume();
            let is_alone = matches!(action, Action::Delete { .. } | Action::Rollback { .. });
            batch.retain(|other| !is_alone || other.volume() != volume);
            let at = usize::try_from(self.seed.below(batch.len() as u64 + 1)).unwrap_or(0);
            batch.insert(at, action);
        }
        let is_cut = self.seed.one_in(4);
        let freed = self.freed_by(&batch)?;
        let requests: Vec<VolumeRequest> =
            batch.iter().map(|action| self.request(action)).collect::<Outcome<_>>()?;
        let polls = self.seed.below(40);
        let pace = self.seed.one_in(2);
        let pool = self.pool()?;
        let mut done = Vec::new();
        for (number, request) in (0..).zip(requests) {
            pool.submit(VolumeTag(number), request).map_err(|_| "no room for a request")?;
            if pace {
                pool.poll(Duration::ZERO, &mut done);
            }
        }
        if is_cut {
            for _ in 0..polls {
                pool.poll(Duration::ZERO, &mut done);
            }
            let cut = Cut::Any(self.seed.draw());
            let mut disk = self.pool()?.store().disk().cut(cut);
            disk.restart(Cache::Volatile, self.seed.draw());
            self.mount(disk)?;
            self.tally.cuts += 1;
            self.tally.cut_off += (batch.len() - done.len()) as u64;
        } else {
            done.extend(settle(pool)?);
        }
        let mut results: Vec<Option<Result<(), VolumeRefusal>>> = vec![None; batch.len()];
        for done in done {
            results[usize::try_from(done.tag.0).map_err(|_| "small")?] = Some(done.result);
        }
        self.resolve(&batch, &results)?;
        self.check_freed(freed, &results, is_cut)
    }

    /// Compares what is there with what may be, and takes over what is.
    fn resolve(
        &mut self,
        batch: &[Action],
        results: &[Option<Result<(), VolumeRefusal>>],
    ) -> Outcome<()> {
        let before = self.models.clone();
        // What each sector may be that something in the batch wrote.
        let mut written: BTreeMap<(u64, u64), (u64, bool)> = BTreeMap::new();
        for (action, result) in batch.iter().zip(results) {
            match result {
                Some(Ok(())) => self.tally.done += 1,
                Some(Err(_)) => self.tally.refused += 1,
                None => {}
            }
            for (sector, value) in action.changes() {
                match result {
                    Some(Err(refusal)) => return Err(format!("{action:?}: {refusal:?}")),
                    result => {
                        written.insert((action.volume(), sector), (value, result.is_some()));
                    }
                }
            }
        }
        for (action, result) in batch.iter().zip(results) {
            self.resolve_other(action, *result, &before, &written)?;
        }
        let volumes: Vec<u64> = self.models.keys().copied().collect();
        for volume in volumes {
            let is_fresh = !before.contains_key(&volume);
            let was_rolled_back = batch.iter().any(|action| {
                matches!(action, Action::Rollback { .. }) && action.volume() == volume
            });
            if is_fresh || was_rolled_back {
                continue;
            }
            let writes: BTreeMap<u64, (u64, bool)> = written
                .range((volume, 0)..=(volume, u64::MAX))
                .map(|((_, sector), write)| (*sector, *write))
                .collect();
            if writes.values().all(|(_, is_done)| *is_done) {
                // Nothing to find out; the whole is compared from time to time.
                let Some(model) = self.models.get_mut(&volume) else { continue };
                for (sector, (value, _)) in writes {
                    put(&mut model.head, sector, value);
                }
                continue;
            }
            let handle = self.handle(volume)?;
            let found = read_all(self.pool()?, handle)?;
            let old = &before[&volume].head;
            check_between(&format!("volume {volume}"), old, &writes, &found, true)?;
            if let Some(model) = self.models.get_mut(&volume) {
                model.head = found;
            }
        }
        Ok(())
    }

    #[expect(clippy::too_many_lines, reason = "one arm for each action, none of them long")]
    fn resolve_other(
        &mut self,
        action: &Action,
        result: Option<Result<(), VolumeRefusal>>,
        before: &BTreeMap<u64, Model>,
        written: &BTreeMap<(u64, u64), (u64, bool)>,
    ) -> Outcome<()> {
        let volume = action.volume();
        let status = self.pool()?.status(VolumeId(volume));
        let is_there = status.is_some();
        let snapshots = self.pool()?.snapshots(VolumeId(volume)).unwrap_or_default();
        let has = |snapshot: u64| {
            snapshots.iter().any(|found| found.snapshot.0 == snapshot && !found.is_leaving)
        };
        let must = |found: bool, what: &str| match result {
            Some(Ok(())) if !found => Err(format!("{action:?} was answered: {what}")),
            Some(Err(refusal)) if found => {
                Err(format!("{action:?} was refused, {refusal:?}: {what}"))
            }
            _ => Ok(found),
        };
        let writes_of = |volume: u64| -> BTreeMap<u64, (u64, bool)> {
            let all = written.range((volume, 0)..=(volume, u64::MAX));
            all.map(|((_, sector), (value, _))| (*sector, (*value, false))).collect()
        };
        match *action {
            Action::Write { .. } | Action::Zero { .. } => {}
            Action::Create { .. } => {
                if must(is_there, "is it there?")? {
                    let model = Model {
                        size: SIZE,
                        head: Sectors::new(),
                        snapshots: BTreeMap::new(),
                        parent: None,
                    };
                    self.models.insert(volume, model);
                }
            }
            Action::Clone { source, snapshot, .. } => {
                if must(is_there, "is it there?")? {
                    let from = &before[&source];
                    let handle = self.handle(volume)?;
                    let found = read_all(self.pool()?, handle)?;
                    let (size, old, writes) = match snapshot {
                        Some(snapshot) => {
                            let (size, old) = &from.snapshots[&snapshot];
                            (*size, old, BTreeMap::new())
                        }
                        None => (from.size, &from.head, writes_of(source)),
                    };
                    check_between(
                        &format!("clone {volume} of {source}"),
                        old,
                        &writes,
                        &found,
                        true,
                    )?;
                    let (parent, snapshots) = (Some((source, snapshot)), BTreeMap::new());
                    self.models.insert(volume, Model { size, head: found, snapshots, parent });
                }
            }
            Action::Delete { .. } => {
                if must(!is_there, "is it gone?")? {
                    let is_parent =
                        |model: &Model| model.parent.is_some_and(|(parent, _)| parent == volume);
                    self.has_hidden |= self.models.values().any(is_parent);
                    self.models.remove(&volume);
                    self.handles.remove(&volume);
                }
            }
            Action::Grow { .. } => {
                let size = status.map_or(0, |status| status.size);
                must(size == GROWN || result.is_none(), "is it large?")?;
                if let Some(model) = self.models.get_mut(&volume) {
                    model.size = size;
                }
            }
            Action::Snapshot { snapshot, .. } => {
                if must(has(snapshot), "is it there?")? {
                    let from = &before[&volume];
                    let found = self.read_snapshot(volume, snapshot)?;
                    let what = format!("snapshot {snapshot} of {volume}");
                    check_between(&what, &from.head, &writes_of(volume), &found, true)?;
                    if let Some(model) = self.models.get_mut(&volume) {
                        model.snapshots.insert(snapshot, (model.size, found));
                    }
                }
            }
            Action::Leave { snapshot, .. } => {
                if must(!has(snapshot), "is it gone?")?
                    && let Some(model) = self.models.get_mut(&volume)
                {
                    model.snapshots.remove(&snapshot);
                }
            }
            Action::Rollback { snapshot, .. } => {
                let handle = self.handle(volume)?;
                let found = read_all(self.pool()?, handle)?;
                let model = &before[&volume];
                let is_back = found == model.snapshots[&snapshot].1;
                if found != model.head || matches!(result, Some(Ok(()))) {
                    must(is_back, "is it what the snapshot is?")?;
                    if !is_back {
                        return Err(format!("{action:?} left volume {volume} half way: {found:?}"));
                    }
                }
                if let Some(model) = self.models.get_mut(&volume) {
                    model.head = found;
                }
            }
            Action::Flatten { .. } => {
                let parent = status.and_then(|status| status.parent);
                if matches!(result, Some(Ok(()))) && parent.is_some() {
                    return Err(format!("{action:?} was answered, and it is still a clone"));
                }
                if parent.is_none()
                    && let Some(model) = self.models.get_mut(&volume)
                {
                    model.parent = None;
                }
            }
        }
        Ok(())
    }

    fn read_snapshot(&mut self, volume: u64, snapshot: u64) -> Outcome<Sectors> {
        let pool = self.pool()?;
        let handle = pool.attach_snapshot(VolumeId(volume), SnapshotId(snapshot));
        let handle = handle.map_err(|refusal| format!("snapshot {snapshot}: {refusal:?}"))?;
        let found = read_all(pool, handle)?;
        pool.detach(handle).map_err(|refusal| format!("{refusal:?}"))?;
        Ok(found)
    }

    /// Reads everything.
    pub(crate) fn compare(&mut self) -> Outcome<()> {
        self.pool()?.store_mut().check().map_err(|fault| format!("{fault:?}"))?;
        for (volume, model) in self.models.clone() {
            let handle = self.handle(volume)?;
            let found = read_all(self.pool()?, handle)?;
            equal(&format!("volume {volume}"), &model.head, &found)?;
            for (snapshot, (_, expected)) in &model.snapshots {
                let found = self.read_snapshot(volume, *snapshot)?;
                equal(&format!("snapshot {snapshot} of {volume}"), expected, &found)?;
            }
            self.compare_usage(volume)?;
            self.compare_changes(volume, &model)?;
        }
        Ok(())
    }

    fn usage(&mut self, volume: u64) -> Outcome<VolumeUsage> {
        let done = run(self.pool()?, VolumeRequest::Usage { volume: VolumeId(volume) })?;
        match done.answer.map(|answer| *answer) {
            Some(VolumeAnswer::Usage(usage)) => Ok(usage),
            other => Err(format!("usage of {volume}: {other:?} {:?}", done.result)),
        }
    }

    /// What the volumes keep counting is what is there.
    fn compare_usage(&mut self, volume: u64) -> Outcome<()> {
        let usage = self.usage(volume)?;
        let status = self.pool()?.status(VolumeId(volume)).ok_or("no status")?;
        if usage.written != status.written {
            return Err(format!("volume {volume}: {usage:?} and not {status:?}"));
        }
        Ok(())
    }

    /// Every sector that differs between two states is in a range that is said to differ.
    fn compare_changes(&mut self, volume: u64, model: &Model) -> Outcome<()> {
        let snapshots: Vec<u64> = model.snapshots.keys().copied().collect();
        for (place, &to) in snapshots.iter().enumerate() {
            let froms = [None].into_iter().chain(snapshots[..place].iter().copied().map(Some));
            for from in froms {
                let request = VolumeRequest::Changes {
                    volume: VolumeId(volume),
                    from: from.map(SnapshotId),
                    to: Some(SnapshotId(to)),
                    start: 0,
                };
                let done = run(self.pool()?, request)?;
                let Some(VolumeAnswer::Changes(changes)) = done.answer.map(|answer| *answer) else {
                    return Err(format!("changes of {volume}: {:?}", done.result));
                };
                let empty = Sectors::new();
                let old = from.map_or(&empty, |from| &model.snapshots[&from].1);
                let (size, new) = &model.snapshots[&to];
                check_changes(&changes, *size, old, new)
                    .map_err(|what| format!("{volume} from {from:?} to {to}: {what}"))?;
                self.tally.diffs += 1;
            }
        }
        Ok(())
    }

    /// What deleting alone is said to free, if the batch is one deletion and nothing else.
    fn freed_by(&mut self, batch: &[Action]) -> Outcome<Option<(u64, u64)>> {
        let [action] = batch else { return Ok(None) };
        let freed = match *action {
            Action::Leave { volume, snapshot } => {
                let usage = self.usage(volume)?;
                usage.snapshots.iter().find(|(id, _)| id.0 == snapshot).map(|(_, freed)| *freed)
            }
            Action::Delete { volume } => {
                let model = &self.models[&volume];
                let is_plain = !self.has_hidden
                    && model.snapshots.is_empty()
                    && model.parent.is_none()
                    && !self
                        .models
                        .values()
                        .any(|other| other.parent.is_some_and(|(parent, _)| parent == volume));
                let usage = self.usage(volume)?;
                is_plain.then_some(usage.unique + usage.snapshots_unique)
            }
            _ => None,
        };
        let used = self.pool()?.store().capacity().used;
        Ok(freed.map(|freed| (used, freed)))
    }

    fn check_freed(
        &mut self,
        freed: Option<(u64, u64)>,
        results: &[Option<Result<(), VolumeRefusal>>],
        is_cut: bool,
    ) -> Outcome<()> {
        let (Some((before, freed)), [Some(Ok(()))], false) = (freed, results, is_cut) else {
            return Ok(());
        };
        let used = self.pool()?.store().capacity().used;
        self.tally.freed += 1;
        if before - used == freed {
            Ok(())
        } else {
            Err(format!("deleting freed {} bytes, {freed} were announced", before - used))
        }
    }

    pub(crate) fn restart(&mut self) -> Outcome<()> {
        let Some(pool) = self.pool.take() else { return Ok(()) };
        let mut disk = pool.stop().unmount();
        disk.restart(Cache::Volatile, self.seed.draw());
        self.tally.restarts += 1;
        self.mount(disk)
    }

    /// Deletes everything and looks whether anything is left.
    pub(crate) fn wind_up(&mut self) -> Outcome<()> {
        // Snapshots with clones go after their clones.
        for _ in 0..VOLUMES * 2 {
            for (volume, model) in self.models.clone() {
                let has_clones = self
                    .models
                    .values()
                    .any(|other| other.parent.is_some_and(|(parent, _)| parent == volume));
                let announced = self.usage(volume)?.snapshots_unique;
                let before = self.pool()?.store().capacity().used;
                let count = model.snapshots.len();
                for snapshot in model.snapshots.into_keys() {
                    let action = Action::Leave { volume, snapshot };
                    self.carry_out(action)?;
                }
                let freed = before - self.pool()?.store().capacity().used;
                if !has_clones && !self.has_hidden {
                    self.tally.cleared += u64::from(count > 1);
                    if freed != announced {
                        return Err(format!(
                            "{count} snapshots freed {freed} bytes, not {announced}"
                        ));
                    }
                }
                self.carry_out(Action::Delete { volume })?;
            }
        }
        let left = self.pool()?.store().capacity();
        let is_empty = self.models.is_empty() && left.objects == 0 && left.used == 0;
        if is_empty { Ok(()) } else { Err(format!("{:?} and {left:?} are left", self.models)) }
    }

    fn carry_out(&mut self, action: Action) -> Outcome<()> {
        let request = self.request(&action)?;
        let result = run(self.pool()?, request)?.result;
        self.resolve(&[action], &[Some(result)])
    }

    pub(crate) fn one_in(&mut self, times: u64) -> bool {
        self.seed.one_in(times)
    }
}

fn check_changes(changes: &Changes, size: u64, old: &Sectors, new: &Sectors) -> Outcome<()> {
    if changes.next.is_some() {
        return Err("a small volume in one piece".to_owned());
    }
    let covers = |sector: u64| {
        let at = bytes_of(sector);
        let holds =
            |range: &&ChangedRange| (range.offset..range.offset + range.length).contains(&at);
        changes.ranges.iter().find(holds)
    };
    let differs = |sector: &&u64| old.get(*sector) != new.get(*sector);
    let is_named = |sector: &u64| covers(*sector).is_some();
    let missing = old.keys().chain(new.keys()).find(|sector| differs(sector) && !is_named(sector));
    if let Some(sector) = missing {
        return Err(format!("sector {sector} differs and is not named"));
    }
    let is_zero = |sector: &u64| covers(*sector).is_some_and(|range| range.is_zero);
    if let Some(sector) = new.keys().find(|sector| is_zero(sector)) {
        return Err(format!("sector {sector} is said to be zeros"));
    }
    let is_inside = changes.ranges.iter().all(|range| range.offset + range.length <= size);
    let is_apart =
        changes.ranges.windows(2).all(|pair| pair[0].offset + pair[0].length <= pair[1].offset);
    if is_inside && is_apart { Ok(()) } else { Err(format!("{:?}", changes.ranges)) }
}

fn equal(what: &str, expected: &Sectors, found: &Sectors) -> Outcome<()> {
    if expected == found {
        return Ok(());
    }
    let sectors = expected.keys().chain(found.keys());
    let wrong: Vec<String> = sectors
        .filter(|sector| expected.get(sector) != found.get(sector))
        .map(|s| format!("{s}: {:?} and not {:?}", found.get(s), expected.get(s)))
        .take(6)
        .collect();
    Err(format!("{what}: {wrong:?}"))
}

/// Every sector is as it was, or as something wrote it that was not answered; what was answered
/// is there (`is_bound`).
fn check_between(
    what: &str,
    old: &Sectors,
    writes: &BTreeMap<u64, (u64, bool)>,
    found: &Sectors,
    is_bound: bool,
) -> Outcome<()> {
    let mut expected = old.clone();
    for (&sector, &(value, is_done)) in writes {
        let now = found.get(&sector).copied().unwrap_or(0);
        let must = is_done && is_bound;
        let is_legal = now == value || (!must && now == old.get(&sector).copied().unwrap_or(0));
        put(&mut expected, sector, if is_legal { now } else { value });
    }
    equal(what, &expected, found)
}
