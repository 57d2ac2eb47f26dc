// SPDX-License-Identifier: Apache-2.0
//! One pool, the worker's half: its volumes, and who waits for them.

use crate::door::{BURST, Guests};
use crate::message::{Answer, DiskFacts, EngineRefusal, PoolFacts};
use crate::place::{DiskMember, DiskStore, PoolDisk, PoolVolumes};
use crate::seat::DiskSeat;
use crossbeam_channel::Sender;
use plinth_ids::{DiskId, Moment, PoolId};
use plinth_qos::Fair;
use plinth_span::{DiskCondition, SpanDisk};
use plinth_store::{ObjectStore, ReadOnlyReason, StoreCounters, StoreState};
use plinth_store_api::Costs;
use plinth_volume::{VolumeCompletion, VolumeRefusal, VolumeRequest, VolumeTag};
use std::collections::VecDeque;

/// The bit of a tag that says that a management thread waits for it, not a guest.
const MANAGED: u64 = 1 << 63;

/// The bit of a tag that says that it came through a door: then its lower half is the number
/// there, and above that stands which door.
const FAR: u64 = 1 << 62;

/// The placement group of all headers.
const HEADERS: usize = 0;

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
    /// Disks on their way out, and who waits for them.
    leaving: Vec<(DiskId, Answer<Option<Box<DiskSeat>>>)>,
    disks_version: u64,
    /// Those of other workers, a door each. Doors stay until the pool ends.
    guests: Vec<Guests>,
}

impl Pool {
    /// Takes over a mounted pool; `answer` hears when it serves.
    pub(crate) fn open(id: PoolId, volumes: Box<PoolVolumes>, answer: Answer<()>) -> Self {
        let disks_version = volumes.store().version();
        Self {
            id,
            volumes,
            fair: Fair::new(),
            life: Life::Opening(answer),
            stalled: VecDeque::new(),
            managed: Vec::new(),
            in_flight: 0,
            landed: Vec::new(),
            leaving: Vec::new(),
            disks_version,
            guests: Vec::new(),
        }
    }

    /// Attachments of another worker may come.
    pub(crate) fn admit(&mut self, guests: Guests) {
        self.guests.push(guests);
    }

    pub(crate) const fn is_serving(&self) -> bool {
        matches!(self.life, Life::Serving)
    }

    /// Takes nothing more; [`Pool::end`] once [`Pool::has_ended`].
    pub(crate) fn close(&mut self, answer: Answer<Box<PoolVolumes>>) {
        self.life = Life::Closing(answer);
        // A move is begun again by the next start.
        self.volumes.store_mut().pause(true);
        let _ = self.scrub(None, crate::scrub::Order::Stop);
        let seats = self.volumes.store_mut().stores_mut();
        for store in seats.filter_map(|(_, seat)| seat.here_mut()) {
            store.stop_discards();
            store.disk_mut().be_patient(true);
        }
    }

    pub(crate) const fn is_ending(&self) -> bool {
        matches!(self.life, Life::Closing(_))
    }

    /// Whether nothing is under way, of guests, of management or of the store itself, so that the
    /// disk can go to another thread.
    pub(crate) fn has_ended(&self) -> bool {
        let is_idle = || self.disks().all(PoolDisk::is_idle) && self.volumes.store().is_settled();
        self.is_ending() && self.in_flight == 0 && is_idle()
    }

    /// Gives the volumes to whoever asked for the end.
    pub(crate) fn end(self) {
        if let Life::Closing(answer) = self.life {
            // An asker that is gone was the last: the pool is then mended at its next mount.
            let _ = answer.send(Ok(self.volumes));
        }
    }

    /// The disks that are there and this worker's.
    pub(crate) fn disks(&self) -> impl Iterator<Item = &PoolDisk> {
        self.volumes.store().stores().filter_map(|(_, seat)| seat.here()).map(DiskStore::disk)
    }

    /// Whether a sleeping worker is woken when something can go on. A disk in memory announces
    /// nothing; while it has something, the worker looks by the clock.
    pub(crate) fn announces(&self) -> bool {
        let is_told = self.in_flight == 0 || self.disks().all(|disk| disk.descriptor().is_some());
        // A disk that hangs tells nobody when it is given up.
        is_told
            && !self.is_ending()
            && !self.is_scrubbing()
            && !self.volumes.waits_for_time()
            && !self.volumes.store().is_moving()
    }

    /// When a move that failed is tried again, or freed space is given back to a device.
    pub(crate) fn deadline(&self) -> Option<Moment> {
        let stores = self.volumes.store().stores().filter_map(|(_, seat)| seat.here());
        let discards = stores.filter_map(DiskStore::deadline);
        discards.chain(self.volumes.store().deadline()).min()
    }

    /// Shows what the store has counted to whoever reads the metrics.
    pub(crate) fn show(&self) {
        let store = self.volumes.store();
        for store in store.stores().filter_map(|(_, seat)| seat.here()) {
            if let Some(meter) = store.disk().meter() {
                meter.show(&store.counters());
            }
        }
    }

    pub(crate) fn facts(&self) -> PoolFacts {
        let span = self.volumes.store();
        let capacity = span.capacity();
        let disks: Vec<DiskFacts> = span.disks().into_iter().map(|disk| self.of(disk)).collect();
        let sum = |count: fn(&StoreCounters) -> u64| -> u64 {
            disks.iter().map(|disk| count(&disk.counters)).sum()
        };
        PoolFacts {
            pool: self.id,
            fault: self.fault(&disks),
            capacity: capacity.total,
            used: capacity.used,
            volumes: self.volumes.list().len() as u64,
            objects: capacity.objects,
            checksum_errors: sum(|counters| counters.bad_blocks),
            costs: Costs {
                system_calls: self.disks().map(PoolDisk::system_calls).sum(),
                disk_bytes_read: sum(|counters| counters.disk_bytes_read),
                disk_bytes_written: sum(|counters| counters.disk_bytes_written),
            },
            level: capacity.level,
            disks,
            wipes: self.volumes.wipes(),
        }
    }

    fn of(&self, disk: SpanDisk) -> DiskFacts {
        // What only its owner knows of a disk of another worker is added by whoever asks.
        let store = self.volumes.store().store(disk.disk).and_then(DiskSeat::here);
        let bad_blocks = store.map_or(0, |store| store.bad_block_count() as u64);
        DiskFacts { disk, bad_blocks, counters: store.map(DiskStore::counters).unwrap_or_default() }
    }

    /// What keeps the pool from being whole, for people.
    fn fault(&self, disks: &[DiskFacts]) -> Option<String> {
        if let Some(text) = self.rescued(disks) {
            return Some(text);
        }
        if let ([only], StoreState::ReadOnly(reason)) = (disks, self.volumes.store().state()) {
            debug_assert!(only.disk.capacity.is_some(), "a read-only disk is there");
            return Some(format!(
                "the pool is read-only, because {reason}: mend the device, then take the pool out \
                 of the configuration and put it back"
            ));
        }
        let is_out = |facts: &&DiskFacts| facts.disk.condition != DiskCondition::Working;
        let out: Vec<String> = disks
            .iter()
            .filter(is_out)
            .map(|facts| format!("{}: {}", facts.disk.disk, facts.disk.condition))
            .collect();
        if !out.is_empty() {
            let unknown = self.knows_volumes().err();
            let unknown = unknown.map(|refusal| format!("; {refusal}")).unwrap_or_default();
            return Some(format!(
                "the pool is degraded, what is on these disks is refused: {}{unknown}",
                out.join("; ")
            ));
        }
        if let Err(refusal) = self.knows_volumes() {
            return Some(refusal.to_string());
        }
        let trouble = self.volumes.store().trouble();
        trouble.map(|text| format!("data does not move between disks, and is tried again: {text}"))
    }

    /// What a pool that is mounted for rescue has lost, for people.
    fn rescued(&self, disks: &[DiskFacts]) -> Option<String> {
        let rescue = DiskCondition::ReadOnly(ReadOnlyReason::Rescue);
        disks.iter().find(|facts| facts.disk.condition == rescue)?;
        let reason = ReadOnlyReason::Rescue;
        let mut text = format!(
            "the pool is read-only, because {reason}: copy its volumes, then format it, or take \
             the rescue back if nothing is missing"
        );
        for facts in disks {
            let disk = facts.disk.disk;
            if facts.disk.condition != rescue {
                text += &format!("; {disk}: {}", facts.disk.condition);
                continue;
            }
            // A disk of another worker is told of in the log, where every disk is.
            let Some(store) = self.volumes.store().store(disk).and_then(DiskSeat::here) else {
                continue;
            };
            match store.rescued_from() {
                Some(lost) => text += &format!("; {disk}: {lost}"),
                None => text += &format!("; {disk}: nothing is missing"),
            }
        }
        Some(text)
    }

    /// Takes a disk in.
    pub(crate) fn join(&mut self, member: DiskMember) -> Result<(), EngineRefusal> {
        let disk = member.disk;
        self.volumes
            .store_mut()
            .join(member)
            .map_err(|refused| EngineRefusal::Join { disk, source: refused.error })?;
        self.volumes.look_again();
        Ok(())
    }

    /// Whether what the pool says of its volumes is all there is to say.
    pub(crate) fn knows_volumes(&self) -> Result<(), EngineRefusal> {
        if !self.volumes.is_ready() {
            return Err(VolumeRefusal::NotReady.into());
        }
        if !self.volumes.is_blind() {
            return Ok(());
        }
        let disk = self.volumes.store().missing_of(HEADERS);
        Err(disk.map_or(VolumeRefusal::HeadersOut.into(), |disk| EngineRefusal::HeadersOut {
            pool: self.id,
            disk,
        }))
    }

    pub(crate) fn drain(&mut self, disk: DiskId, is_draining: bool) -> Result<(), EngineRefusal> {
        let span = self.volumes.store_mut();
        span.set_draining(disk, is_draining).map_err(|source| EngineRefusal::Leave { disk, source })
    }

    /// Begins to forget a disk; `answer` hears when it has left.
    pub(crate) fn leave(&mut self, disk: DiskId, answer: Answer<Option<Box<DiskSeat>>>) {
        if self.leaving.iter().any(|(known, _)| *known == disk) {
            let _ = answer.send(Err(EngineRefusal::Leaving { disk }));
            return;
        }
        let span = self.volumes.store_mut();
        match span.leave(disk) {
            Err(source) => {
                let _ = answer.send(Err(EngineRefusal::Leave { disk, source }));
            }
            Ok(()) if span.store(disk).is_none() => {
                let _ = answer.send(Ok(None));
            }
            Ok(()) => self.leaving.push((disk, answer)),
        }
    }

    /// Lets go of disks that have left.
    fn settle_leaving(&mut self) {
        while let Some((disk, store)) = self.volumes.store_mut().take_left() {
            let place = self.leaving.iter().position(|(known, _)| *known == disk);
            if let Some((_, answer)) = place.map(|place| self.leaving.swap_remove(place)) {
                let _ = answer.send(Ok(Some(Box::new(store))));
            }
        }
    }

    /// Whether disks came or went since this was last asked.
    pub(crate) fn take_disk_change(&mut self) -> bool {
        let version = self.volumes.store().version();
        std::mem::replace(&mut self.disks_version, version) != version
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
        if !self.guests.is_empty() {
            moved += self.take_from_guests();
        }
        moved += usize::from(self.volumes.poll(now, &mut self.landed));
        // A disk that is memory has ended by now what that gave to it, the journal's entry of a
        // write above all: nobody waits for another round. 0.2 us of a write at depth 1.
        if self.in_flight > self.landed.len() && self.volumes.lends() {
            moved += usize::from(self.volumes.poll(now, &mut self.landed));
        }
        moved += self.landed.len();
        self.settle_opening();
        if !self.leaving.is_empty() {
            self.settle_leaving();
        }
        self.in_flight -= self.landed.len();
        for completion in self.landed.drain(..) {
            if completion.tag.0 & (MANAGED | FAR) == 0 {
                landed.push(completion);
                continue;
            }
            if completion.tag.0 & (MANAGED | FAR) == FAR {
                answer_guest(&mut self.guests, completion);
                continue;
            }
            let place = usize::try_from(completion.tag.0 & !MANAGED).unwrap_or(usize::MAX);
            let managed = self.managed.get_mut(place).and_then(Option::take);
            if let Some(Managed { tag, done }) = managed {
                // Nobody waits when the connection's thread has ended; then nothing is owed.
                let _ = done.send(VolumeCompletion { tag: VolumeTag(tag), ..completion });
            }
        }
        self.guests.iter_mut().for_each(Guests::publish);
        moved
    }

    /// Takes what other workers ask, a burst of each. While something is stalled they wait in
    /// their rings.
    fn take_from_guests(&mut self) -> usize {
        let mut moved = 0;
        for which in 0..self.guests.len() {
            for _ in 0..BURST {
                if !self.has_room() {
                    return moved;
                }
                let Some((number, request)) = self.guests[which].take() else { break };
                moved += 1;
                self.offer(VolumeTag(FAR | (which as u64) << 32 | u64::from(number)), request);
            }
        }
        moved
    }
}

/// Sends an end back through the door that its request came through.
fn answer_guest(guests: &mut [Guests], completion: VolumeCompletion) {
    let tag = completion.tag.0 & !FAR;
    let number = u32::try_from(tag & u64::from(u32::MAX)).unwrap_or(u32::MAX);
    let door = usize::try_from(tag >> 32).ok().and_then(|door| guests.get_mut(door));
    if let Some(door) = door {
        door.answer(number, completion);
    }
}
