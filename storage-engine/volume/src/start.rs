// SPDX-License-Identifier: Apache-2.0
//! Reading the volumes' headers when a pool starts.
//!
//! ```text
//!   list 256 id objects ─▶ read each one's id and header ─▶ … ─▶ sum its data objects, 1024 a call
//!                                                            ─▶ ready; half-made ones are deleted
//! ```

use crate::header::{Header, State, parse_name};
use crate::jobs::Job;
use crate::key::{Kind, data_range, id_range, key, volume_of};
use crate::volumes::{Volume, Volumes};
use plinth_ids::{Name, PoolId, VolumeId};
use plinth_store::{Disk, ObjectKey, StoreAnswer, StoreRefusal, StoreRequest};
use std::collections::BTreeMap;
use std::ops::RangeInclusive;

/// Volumes that are read at once.
const VOLUMES_AT_ONCE: usize = 256;
/// Objects that are summed in one call.
const OBJECTS_AT_ONCE: usize = 1024;

#[derive(Debug, Default)]
struct Half {
    name: Option<Option<Name>>,
    header: Option<Option<Header>>,
}

#[derive(Debug)]
pub(crate) struct Start {
    /// Id objects that are not read yet.
    ids: Option<RangeInclusive<ObjectKey>>,
    /// Volumes on their way, by a number each; two answers come for every one.
    reading: BTreeMap<VolumeId, Half>,
    asked: Vec<VolumeId>,
    /// Volumes whose objects are not summed yet, and from where.
    to_sum: Vec<(VolumeId, RangeInclusive<ObjectKey>)>,
}

impl Start {
    pub(crate) fn new(pool: PoolId) -> Self {
        Self {
            ids: Some(id_range(pool)),
            reading: BTreeMap::new(),
            asked: Vec::new(),
            to_sum: Vec::new(),
        }
    }
}

/// The range behind a key, if there is one.
fn after(range: &RangeInclusive<ObjectKey>, last: &ObjectKey) -> Option<RangeInclusive<ObjectKey>> {
    let mut next = *last;
    next.object.0 = next.object.0.checked_add(1)?;
    (next <= *range.end()).then(|| next..=*range.end())
}

impl<D: Disk> Volumes<D> {
    /// Goes on with reading the headers. Says whether anything moved.
    pub(crate) fn advance_start(&mut self) -> bool {
        let Some(mut start) = self.start.take() else { return false };
        if start.reading.is_empty()
            && let Some(range) = start.ids.take()
        {
            self.read_ids(&mut start, range);
            self.start = Some(start);
            return true;
        }
        if !start.reading.is_empty() {
            self.start = Some(start);
            return false;
        }
        if let Some((volume, range)) = start.to_sum.pop() {
            let found = self.store.list(range.clone(), OBJECTS_AT_ONCE);
            if let Some(entry) = self.volumes.get_mut(&volume) {
                entry.objects += i64::try_from(found.len()).unwrap_or(0);
                entry.units += found.iter().map(|object| i64::from(object.units)).sum::<i64>();
            }
            let rest = found.last().and_then(|last| after(&range, &last.key));
            start.to_sum.extend(rest.map(|rest| (volume, rest)));
            self.start = Some(start);
            return true;
        }
        let is_half_made = |volume: &&VolumeId| {
            self.volumes.get(volume).is_some_and(|volume| volume.state != State::Ready)
        };
        let left: Vec<VolumeId> = self.volumes.keys().filter(is_half_made).copied().collect();
        for volume in left {
            self.jobs.push(Job::clean_up(volume));
        }
        true
    }

    fn read_ids(&mut self, start: &mut Start, range: RangeInclusive<ObjectKey>) {
        let at_once = VOLUMES_AT_ONCE.min(self.store.room() / 2).max(1);
        let found = self.store.list(range.clone(), at_once);
        if let Some(last) = found.last() {
            start.ids = after(&range, &last.key);
        }
        start.asked.clear();
        for object in found {
            let volume = volume_of(&object.key);
            let number = start.asked.len() as u64;
            start.asked.push(volume);
            start.reading.insert(volume, Half::default());
            let header = key(self.pool, Kind::Header, volume, 0);
            self.send_start(number * 2, StoreRequest::Attributes { key: object.key });
            self.send_start(number * 2 + 1, StoreRequest::Attributes { key: header });
        }
    }

    pub(crate) fn start_answer(&mut self, detail: u64, result: Result<StoreAnswer, StoreRefusal>) {
        let Some(start) = &mut self.start else { return };
        let number = usize::try_from(detail / 2).unwrap_or(usize::MAX);
        let Some(&volume) = start.asked.get(number) else { return };
        let Some(half) = start.reading.get_mut(&volume) else { return };
        let pairs = match result {
            Ok(StoreAnswer::Attributes { attributes, .. }) => Some(attributes),
            Ok(_) | Err(_) => None,
        };
        if detail.is_multiple_of(2) {
            half.name = Some(pairs.as_ref().and_then(parse_name));
        } else {
            half.header = Some(pairs.as_ref().and_then(Header::parse));
        }
        if half.name.is_none() || half.header.is_none() {
            return;
        }
        let Some(half) = start.reading.remove(&volume) else { return };
        match (half.name.flatten(), half.header.flatten()) {
            (Some(name), Some(header)) => {
                let Header { size, created_at, updated_at, state } = header;
                start.to_sum.push((volume, data_range(self.pool, volume)));
                let (units, objects, attachments, is_source) = (0, 0, 0, false);
                self.volumes.insert(
                    volume,
                    Volume {
                        name,
                        size,
                        created_at,
                        updated_at,
                        state,
                        units,
                        objects,
                        attachments,
                        is_source,
                    },
                );
            }
            _ => self.broken.push(volume),
        }
    }
}
