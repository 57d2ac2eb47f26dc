// SPDX-License-Identifier: Apache-2.0
//! Reading the volumes' headers when a pool starts.
//!
//! ```text
//!   list 128 id objects ─▶ read each one's id and header ─▶ …
//!   list 128 snapshot records ─▶ read each ─▶ …
//!   list data objects, 1024 at once, group by group: sum them for their volumes
//!     ─▶ ready; what was cut off goes on
//! ```

use crate::header::{Header, Link, Snapshot, State, parse_name};
use crate::jobs::Job;
use crate::key::{GROUPS, Kind, data_range, index_of, key, kind_range, volume_of};
use crate::request::ChoreKind;
use crate::volume::{Kept, Volume};
use crate::volumes::{START, Volumes};
use plinth_ids::{Name, PoolId, VolumeId};
use plinth_store::{
    LIST_MAX, ObjectKey, ObjectStatus, ObjectStore, PgId, StoreAnswer, StoreRefusal, StoreRequest,
};
use std::collections::BTreeMap;
use std::ops::RangeInclusive;

/// Objects whose attributes are read at once.
const READS: usize = 128;
/// The number of the answer to a listing.
const LISTED: u32 = u32::MAX;

/// What is gone through, one after the other.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Stage {
    Ids,
    Snapshots,
    Data { group: u32 },
}

#[derive(Debug)]
pub(crate) struct Start {
    stage: Stage,
    /// What is left of the stage's range.
    rest: Option<RangeInclusive<ObjectKey>>,
    /// A listing or reads are on their way.
    pending: usize,
    /// What was listed and is being read: two answers for each id, one for each snapshot.
    asked: Vec<ObjectKey>,
    /// What has come of ids and headers; they come in any order.
    halves: BTreeMap<VolumeId, Half>,
    /// The disk that has the headers is not there: what was read is not all.
    is_blind: bool,
    /// Disks came while this read, so that being blind is tried again.
    is_old: bool,
}

#[derive(Debug, Default)]
struct Half {
    name: Option<Name>,
    header: Option<Header>,
    answers: u32,
}

impl Start {
    pub(crate) fn new(pool: PoolId) -> Self {
        Self {
            stage: Stage::Ids,
            rest: Some(kind_range(pool, Kind::Id)),
            pending: 0,
            asked: Vec::new(),
            halves: BTreeMap::new(),
            is_blind: false,
            is_old: false,
        }
    }
}

impl<S: ObjectStore> Volumes<S> {
    /// Goes on with reading the headers. Says whether anything moved.
    pub(crate) fn advance_start(&mut self) -> bool {
        let pool = self.pool;
        // An id takes two requests.
        if self.start.as_ref().is_none_or(|start| start.pending > 0) || self.store.room() < 2 {
            return false;
        }
        let Some(start) = &mut self.start else { return false };
        if start.is_blind {
            self.end_blind();
            return true;
        }
        if !start.asked.is_empty() {
            return self.read_asked();
        }
        if let Some(range) = &start.rest {
            let limit = if matches!(start.stage, Stage::Data { .. }) { LIST_MAX } else { READS };
            let request = StoreRequest::List { range: range.clone(), limit };
            start.pending = 1;
            self.send(START | u64::from(LISTED), request);
            return true;
        }
        let all =
            |group| data_range(pool, PgId(group), VolumeId(0)..=VolumeId(u64::MAX), 0..=u32::MAX);
        let (stage, rest) = match start.stage {
            Stage::Ids => (Stage::Snapshots, kind_range(pool, Kind::Snapshot)),
            Stage::Snapshots => (Stage::Data { group: 0 }, all(0)),
            Stage::Data { group } if group + 1 < GROUPS => {
                (Stage::Data { group: group + 1 }, all(group + 1))
            }
            Stage::Data { .. } => {
                self.start = None;
                self.go_on();
                return true;
            }
        };
        (start.stage, start.rest) = (stage, Some(rest));
        true
    }

    /// Forgets what was read: half of the headers, or volumes without their snapshots, would be
    /// taken for all there is. Nobody has a volume attached, since nobody could before this.
    fn end_blind(&mut self) {
        let is_old = self.start.take().is_some_and(|start| start.is_old);
        self.forget_all();
        self.is_blind = true;
        if is_old {
            self.look_again();
        }
    }

    /// Disks came back: reads the headers if their disk was not there before.
    pub fn look_again(&mut self) {
        if let Some(start) = &mut self.start {
            start.is_old = true;
        } else if self.is_blind {
            self.is_blind = false;
            self.start = Some(Start::new(self.pool));
        }
    }

    /// Asks for the attributes of what was listed, as far as there is room.
    fn read_asked(&mut self) -> bool {
        let pool = self.pool;
        let Some(start) = &mut self.start else { return false };
        let each = if start.stage == Stage::Ids { 2 } else { 1 };
        // The rest of the keys is listed again.
        let count = start.asked.len().min((self.store.room() / each).max(1));
        if count < start.asked.len() {
            let first = start.asked[count];
            let end = start.rest.take().map_or_else(
                || match start.stage {
                    Stage::Ids => *kind_range(pool, Kind::Id).end(),
                    _ => *kind_range(pool, Kind::Snapshot).end(),
                },
                |rest| *rest.end(),
            );
            start.rest = Some(first..=end);
            start.asked.truncate(count);
        }
        start.pending = count * each;
        let (keys, is_ids) = (start.asked.clone(), start.stage == Stage::Ids);
        for (number, asked) in (0..).zip(keys) {
            self.send(START | (number * 2), StoreRequest::Attributes { key: asked });
            if is_ids {
                let header = key(pool, Kind::Header, volume_of(&asked), 0);
                self.send(START | (number * 2 + 1), StoreRequest::Attributes { key: header });
            }
        }
        true
    }

    pub(crate) fn start_answer(&mut self, number: u32, result: Result<StoreAnswer, StoreRefusal>) {
        let Some(start) = &mut self.start else { return };
        start.pending -= 1;
        let is_over = start.pending == 0;
        if let Err(StoreRefusal::DiskOut { .. }) = &result {
            match start.stage {
                Stage::Ids | Stage::Snapshots => start.is_blind = true,
                Stage::Data { .. } => self.miss_copies(),
            }
        }
        let Some(start) = &mut self.start else { return };
        let (stage, rest) = (start.stage, start.rest.take());
        if number == LISTED {
            let Ok(StoreAnswer::Listed { objects, next }) = result else { return };
            start.rest = next.zip(rest).map(|(next, rest)| next..=*rest.end());
            return match stage {
                Stage::Ids | Stage::Snapshots => {
                    // The next listing waits until these are read.
                    start.asked = objects.iter().map(|object| object.key).collect();
                }
                Stage::Data { .. } => objects.iter().for_each(|object| self.sum(object)),
            };
        }
        start.rest = rest;
        let place = usize::try_from(number / 2).unwrap_or(usize::MAX);
        let Some(&asked) = start.asked.get(place) else { return };
        let pairs = match result {
            Ok(StoreAnswer::Attributes { attributes, .. }) => Some(attributes),
            Ok(_) | Err(_) => None,
        };
        let volume = volume_of(&asked);
        match stage {
            Stage::Ids => {
                let half = start.halves.entry(volume).or_default();
                half.answers += 1;
                if number.is_multiple_of(2) {
                    half.name = pairs.as_ref().and_then(parse_name);
                } else {
                    half.header = pairs.as_ref().and_then(|pairs| Header::parse(volume, pairs));
                }
                let is_whole = half.answers == 2;
                let whole = if is_whole { start.halves.remove(&volume) } else { None };
                match whole {
                    Some(Half { name: Some(name), header: Some(header), .. }) => {
                        self.add_volume(Volume::new(volume, name, header));
                    }
                    Some(_) => self.broken.push(volume),
                    None => {}
                }
            }
            Stage::Snapshots => {
                let index = u64::from(index_of(&asked));
                let record = pairs.as_ref().and_then(|pairs| Snapshot::parse(index, pairs));
                self.add_record(volume, record);
            }
            Stage::Data { .. } => {}
        }
        if is_over && let Some(start) = &mut self.start {
            start.asked.clear();
        }
    }

    fn add_record(&mut self, volume: VolumeId, record: Option<Snapshot>) {
        let Some(&at) = self.ids.get(&volume) else { return };
        match record {
            Some(record) => {
                let Some(volume) = self.place_mut(at) else { return };
                volume.header.next = volume.header.next.max(record.number + 1);
                let place =
                    volume.snapshots.partition_point(|kept| kept.record.number < record.number);
                volume.snapshots.insert(place, Kept::new(record));
            }
            // Its copies could not be told from those that nobody needs: nothing of the volume
            // is touched.
            None => {
                self.remove_volume(at);
                self.broken.push(volume);
            }
        }
    }

    /// Objects of a group are not to be seen, copies perhaps among them: then no volume is taken
    /// to be what its newest snapshot says.
    fn miss_copies(&mut self) {
        let places: Vec<u32> = self.ids.values().copied().collect();
        for at in places {
            if let Some(volume) = self.place_mut(at) {
                volume.highest_copy = u64::MAX;
            }
        }
    }

    fn sum(&mut self, object: &ObjectStatus) {
        let Some(&at) = self.ids.get(&volume_of(&object.key)) else { return };
        let Some(volume) = self.place_mut(at) else { return };
        let (units, number) = (i64::from(object.units), object.key.snapshot);
        if number == 0 {
            volume.heads.add(units, 1);
        } else {
            volume.copies.add(units, 1);
            volume.highest_copy = volume.highest_copy.max(number);
            volume.header.next = volume.header.next.max(number + 1);
        }
    }

    /// Everything is known: what was cut off goes on.
    fn go_on(&mut self) {
        let places: Vec<u32> = self.ids.values().copied().collect();
        for &at in &places {
            if let Some(volume) = self.place_mut(at) {
                volume.settle();
            }
        }
        self.link_chains();
        for at in places {
            let Some(volume) = self.place(at) else { continue };
            let is_leaving = volume.snapshots.iter().any(|kept| kept.record.is_leaving);
            let chore = match volume.header.state {
                // Volumes of version 1 that were being cloned are half made.
                State::Making | State::Deleting | State::Wiping => Some(ChoreKind::Reclaim),
                State::RollingBack => Some(ChoreKind::Rollback),
                State::Ready if volume.header.is_flattening => Some(ChoreKind::Flatten),
                State::Ready | State::Hidden | State::HiddenToWipe => None,
            };
            let unnamed = volume.snapshots.iter().filter(|kept| kept.record.name.is_none());
            let id = volume.id;
            let links = unnamed.map(|kept| Link { volume: id, number: kept.record.number });
            let mut links: Vec<Link> = links.collect();
            if volume.header.state.is_hidden() && links.is_empty() {
                links.push(Link { volume: id, number: 0 });
            }
            if is_leaving && chore != Some(ChoreKind::Reclaim) {
                self.begin_chore(at, ChoreKind::Trim, None);
            }
            if let Some(kind) = chore {
                self.begin_chore(at, kind, None);
            }
            for link in links {
                self.jobs.push(Job::unlink(link));
            }
        }
    }
}
