// SPDX-License-Identifier: Apache-2.0
//! One pool, the worker's half: its volumes, and who waits for them.

use crate::message::{Answer, PoolFacts};
use crate::place::{PoolDisk, PoolVolumes};
use crossbeam_channel::Sender;
use plinth_ids::{Moment, PoolId};
use plinth_qos::Fair;
use plinth_store::StoreState;
use plinth_store_api::Costs;
use plinth_volume::{VolumeCompletion, VolumeRequest, VolumeTag};
use std::collections::VecDeque;

/// The bit of a tag that says that a management thread waits for it, not a guest.
const MANAGED: u64 = 1 << 63;

/// A request of a management thread that is under way.
#[derive(Debug)]
struct Managed {
    tag: u64,
    done: Sender<VolumeCompletion>,
}

/// Where a pool is on its way.
#[derive(Debug)]
enum Life {
    /// The volumes read their headers.
    Opening(Answer<()>),
    Serving,
    Closing(Answer<Box<PoolVolumes>>),
}

#[derive(Debug)]
pub(crate) struct Pool {
    pub(crate) id: PoolId,
    pub(crate) volumes: Box<PoolVolumes>,
    /// Shares it between the attachments of this worker.
    pub(crate) fair: Fair,
    life: Life,
    /// What the pool gave back because it was full, oldest first.
    stalled: VecDeque<(VolumeTag, VolumeRequest)>,
    managed: Vec<Option<Managed>>,
    /// Requests that the volumes have.
    in_flight: usize,
    landed: Vec<VolumeCompletion>,
}

impl Pool {
    /// Takes over a mounted pool; `answer` hears when it serves.
    pub(crate) fn open(id: PoolId, volumes: Box<PoolVolumes>, answer: Answer<()>) -> Self {
        Self {
            id,
            volumes,
            fair: Fair::new(),
            life: Life::Opening(answer),
            stalled: VecDeque::new(),
            managed: Vec::new(),
            in_flight: 0,
            landed: Vec::new(),
        }
    }

    pub(crate) const fn is_serving(&self) -> bool {
        matches!(self.life, Life::Serving)
    }

    /// Takes nothing more; [`Pool::end`] once [`Pool::has_ended`].
    pub(crate) fn close(&mut self, answer: Answer<Box<PoolVolumes>>) {
        self.life = Life::Closing(answer);
    }

    pub(crate) const fn is_ending(&self) -> bool {
        matches!(self.life, Life::Closing(_))
    }

    /// Whether nothing is under way, of guests, of management or of the store itself, so that the
    /// disk can go to another thread.
    pub(crate) fn has_ended(&self) -> bool {
        self.is_ending() && self.in_flight == 0 && self.disk().is_idle()
    }

    /// Gives the volumes to whoever asked for the end.
    pub(crate) fn end(self) {
        if let Life::Closing(answer) = self.life {
            // An asker that is gone was the last: the pool is then mended at its next mount.
            let _ = answer.send(Ok(self.volumes));
        }
    }

    pub(crate) fn disk(&self) -> &PoolDisk {
        self.volumes.store().disk()
    }

    /// Whether a sleeping worker is woken when something can go on. A disk in memory announces
    /// nothing; while it has something, the worker looks by the clock.
    pub(crate) fn announces(&self) -> bool {
        let is_told = self.disk().descriptor().is_some() || self.in_flight == 0;
        is_told && !self.volumes.waits_for_time()
    }

    /// Shows what the store has counted to whoever reads the metrics.
    pub(crate) fn show(&self) {
        let store = self.volumes.store();
        if let Some(meter) = store.disk().meter() {
            meter.show(&store.counters());
        }
    }

    pub(crate) fn facts(&self) -> PoolFacts {
        let store = self.volumes.store();
        let (capacity, counters) = (store.capacity(), store.counters());
        let fault = match store.state() {
            StoreState::Writable => None,
            StoreState::ReadOnly(reason) => Some(format!(
                "the pool is read-only, because {reason}: mend the device, then take the pool out \
                 of the configuration and put it back"
            )),
        };
        PoolFacts {
            pool: self.id,
            fault,
            capacity: capacity.total,
            used: capacity.used,
            volumes: self.volumes.list().len() as u64,
            objects: capacity.objects,
            checksum_errors: counters.bad_blocks,
            costs: Costs {
                system_calls: store.disk().system_calls(),
                disk_bytes_read: counters.disk_bytes_read,
                disk_bytes_written: counters.disk_bytes_written,
            },
            level: capacity.level,
        }
    }

    fn settle_opening(&mut self) {
        if matches!(self.life, Life::Opening(_))
            && self.volumes.is_ready()
            && let Life::Opening(answer) = std::mem::replace(&mut self.life, Life::Serving)
        {
            let _ = answer.send(Ok(()));
        }
    }

    /// Whether another request can be given to it.
    pub(crate) fn has_room(&self) -> bool {
        self.stalled.is_empty()
    }

    /// Gives the volumes a guest's piece. Call only after [`Pool::has_room`].
    pub(crate) fn submit(&mut self, number: u32, request: VolumeRequest) {
        self.offer(VolumeTag(u64::from(number)), request);
    }

    /// Gives the volumes a request of a management thread.
    pub(crate) fn submit_managed(
        &mut self,
        tag: u64,
        request: VolumeRequest,
        done: Sender<VolumeCompletion>,
    ) {
        let place = match self.managed.iter().position(Option::is_none) {
            Some(place) => place,
            None => {
                self.managed.push(None);
                self.managed.len() - 1
            }
        };
        self.managed[place] = Some(Managed { tag, done });
        self.offer(VolumeTag(place as u64 | MANAGED), request);
    }

    fn offer(&mut self, tag: VolumeTag, request: VolumeRequest) {
        self.in_flight += 1;
        if !self.stalled.is_empty() {
            self.stalled.push_back((tag, request));
        } else if let Err(request) = self.volumes.submit(tag, request) {
            self.stalled.push_back((tag, request));
        }
    }

    fn offer_stalled(&mut self) -> usize {
        let mut moved = 0;
        while let Some((tag, request)) = self.stalled.pop_front() {
            if let Err(request) = self.volumes.submit(tag, request) {
                self.stalled.push_front((tag, request));
                break;
            }
            moved += 1;
        }
        moved
    }

    /// One round. Appends the ends of guests' pieces to `landed`; says how much moved.
    pub(crate) fn poll(&mut self, now: Moment, landed: &mut Vec<VolumeCompletion>) -> usize {
        if self.is_ending() && self.in_flight == 0 {
            // Only the store goes on, to its next quiet moment: what volumes do in the background
            // (deleting) would give it more to do, and goes on by itself after the next mount.
            let mut of_jobs = Vec::new();
            return usize::from(self.volumes.store_mut().poll(now, &mut of_jobs));
        }
        let mut moved = self.offer_stalled();
        moved += usize::from(self.volumes.poll(now, &mut self.landed));
        moved += self.landed.len();
        self.settle_opening();
        self.in_flight -= self.landed.len();
        for completion in self.landed.drain(..) {
            if completion.tag.0 & MANAGED == 0 {
                landed.push(completion);
                continue;
            }
            let place = usize::try_from(completion.tag.0 & !MANAGED).unwrap_or(usize::MAX);
            let managed = self.managed.get_mut(place).and_then(Option::take);
            if let Some(Managed { tag, done }) = managed {
                // Nobody waits when the connection's thread has ended; then nothing is owed.
                let _ = done.send(VolumeCompletion { tag: VolumeTag(tag), ..completion });
            }
        }
        moved
    }
}
