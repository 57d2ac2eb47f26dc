// SPDX-License-Identifier: Apache-2.0
//! The worker: pools and attachments, all owned by one thread, in rounds.
//!
//! ```text
//!   inbox (management) ─┐
//!   queue events ───────┤     each attachment:           each pool:
//!                       ├──▶  guest's rings ─▶ pieces ─▶ submit, disk, complete ─▶ land ─┐
//!                       │     flush used rings ◀─────────────────────────────────────────┘
//! ```
//!
//! Nothing here waits, logs, or makes a system call for each request.

use crate::attachment::{Attachment, Means};
use crate::door::Door;
use crate::flight::Flights;
use crate::hosted::Hosted;
use crate::message::{AttachSpec, Attached, AttachmentFacts, EngineRefusal, Held, Message};
use crate::pace::{Pace, RoundTime};
use crate::place::{DiskStore, PoolDisk};
use crate::pool::Pool;
use crate::slow::SlowLog;
use crate::worker::Instruments;
use crossbeam_channel::Receiver;
use plinth_backends::blk::{BlkClass, BlkOptions, SECTOR_SIZE};
use plinth_backends::{DeviceToken, QueueEvent};
use plinth_ids::{Moment, PoolId, SnapshotId, VolumeId};
use plinth_metrics::{Kind, Metrics};
use plinth_qos::{Account, Fair, cost_of};
use plinth_rt::{Bell, Inbox, Poller, Wake, cycles, pin_to};
use plinth_store::BufferPool;
use plinth_volume::{SnapshotStatus, VolumeCompletion, VolumeRefusal};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

/// Pieces under way over all attachments.
const FLIGHTS: u32 = 4096;

/// Bytes of guests' data under way. Free buffers are kept up to the same sum.
const LENT_MAX: usize = 64 << 20;

/// Messages taken in one round, so that management does not hold up guests.
const MESSAGES: usize = 16;

/// How old the counters of stores may be that others read.
const SHOW_EVERY: Duration = Duration::from_millis(100);

/// The unit whose discard frees space, in sectors: 32 KiB.
const DISCARD_UNIT: u32 = 64;

/// Where a token's attachment is kept. The upper half tells apart those that were there before.
pub(crate) const fn place_of(token: DeviceToken) -> u32 {
    #[expect(clippy::cast_possible_truncation, reason = "the lower half is the place")]
    {
        token.0 as u32
    }
}

/// The worker of a token.
pub(crate) const fn worker_of(token: DeviceToken) -> usize {
    (token.0 >> WORKER_SHIFT) as usize
}

/// Where a token says its worker: above the count of attachments, whose upper bits may be lost.
const WORKER_SHIFT: u32 = 56;

#[derive(Debug)]
pub(crate) struct Engine {
    /// Its number among the workers.
    number: u8,
    inbox: Inbox<Message>,
    events: Receiver<QueueEvent>,
    /// Rung by workers that have put something into a ring of this one.
    bell: Bell,
    pools: Vec<Pool>,
    /// Pools of other workers that have attachments here.
    doors: Vec<Door>,
    /// Disks of pools of other workers.
    hosted: Vec<Hosted>,
    attachments: Vec<Option<Attachment>>,
    means: Means,
    landed: Vec<VolumeCompletion>,
    next_token: u64,
    watch_version: u64,
    time: RoundTime,
    metrics: Arc<Metrics>,
    /// When the stores' counters were last shown.
    shown_at: Moment,
    /// Whether the round before this one moved a request.
    was_busy: bool,
}

impl Engine {
    pub(crate) fn new(
        number: u8,
        (inbox, bell): (Inbox<Message>, Bell),
        events: Receiver<QueueEvent>,
        instruments: Instruments,
    ) -> Self {
        let means = Means {
            flights: Flights::new(FLIGHTS),
            buffers: BufferPool::new(LENT_MAX),
            lent: 0,
            lent_max: LENT_MAX,
            slow: SlowLog::new(instruments.metrics.measure_rate(), instruments.slow_ms),
        };
        Self {
            number,
            inbox,
            events,
            bell,
            pools: Vec::new(),
            doors: Vec::new(),
            hosted: Vec::new(),
            attachments: Vec::new(),
            means,
            landed: Vec::new(),
            next_token: 0,
            watch_version: 0,
            time: RoundTime::default(),
            metrics: instruments.metrics,
            shown_at: Moment::ZERO,
            was_busy: false,
        }
    }

    fn pool(&mut self, pool: PoolId) -> Result<&mut Pool, EngineRefusal> {
        let found = self.pools.iter_mut().find(|known| known.id == pool && known.is_serving());
        found.ok_or(EngineRefusal::PoolMissing { pool })
    }

    /// A pool that knows its volumes.
    fn known(&mut self, pool: PoolId) -> Result<&mut Pool, EngineRefusal> {
        let pool = self.pool(pool)?;
        pool.knows_volumes()?;
        Ok(pool)
    }

    fn take_messages(&mut self) -> usize {
        for taken in 0..MESSAGES {
            let Some(message) = self.inbox.take() else { return taken };
            self.carry_out(message);
        }
        MESSAGES
    }

    /// An answer that nobody takes any more is dropped: its asker is gone, which is no fault.
    fn carry_out(&mut self, message: Message) {
        match message {
            Message::PoolOpen { pool, volumes, answer } => {
                if self.pools.iter().any(|known| known.id == pool) {
                    let _ = answer.send(Err(EngineRefusal::PoolExists { pool }));
                } else {
                    self.pools.push(Pool::open(pool, volumes, answer));
                    self.watch_version += 1;
                }
            }
            Message::PoolClose { pool, answer } => match self.pool(pool) {
                Ok(pool) => pool.close(answer),
                Err(refusal) => {
                    let _ = answer.send(Err(refusal));
                }
            },
            Message::Attach { spec, answer } => {
                let _ = answer.send(self.attach(spec));
            }
            Message::AttachFar { spec, held, answer } => {
                let _ = answer.send(self.attach_far(spec, *held));
            }
            Message::Detach { token, answer } => match self.attachment(token) {
                Some(attachment) => attachment.leave(answer),
                None => {
                    let _ = answer.send(Ok(()));
                }
            },
            Message::Limit { token, limits } => {
                let now = self.time.now;
                if let Some(attachment) = self.attachment(token) {
                    attachment.spec.limits = limits;
                    attachment.pace.change(limits, now);
                }
            }
            Message::Hold { pool, volume, answer } => {
                let _ = answer.send(self.hold(pool, volume));
            }
            Message::HoldSnapshot { pool, volume, snapshot, answer } => {
                let _ = answer.send(self.hold_snapshot(pool, volume, snapshot));
            }
            Message::Release { pool, handle } => {
                if let Ok(pool) = self.pool(pool) {
                    // A handle that is void already is what was asked for.
                    let _ = pool.volumes.detach(handle);
                }
            }
            Message::Submit { pool, tag, request, done } => {
                // Without the pool `done` is dropped, which is the answer: its other end closes.
                if let Ok(pool) = self.pool(pool) {
                    pool.submit_managed(tag, request, done);
                }
            }
            Message::Pools { answer } => {
                let _ = answer.send(self.pools.iter().map(Pool::facts).collect());
            }
            Message::Volumes { pool, answer } => {
                let _ = answer.send(self.known(pool).map(|pool| pool.volumes.list()));
            }
            Message::Slow { limit, answer } => {
                let _ = answer.send(self.means.slow.list(limit));
            }
            Message::Snapshots { pool, volume, answer } => {
                let _ = answer.send(self.snapshots(pool, volume));
            }
            Message::Attachments { answer } => {
                let _ = answer.send(self.attachment_facts());
            }
            about_disks => self.change_disks(about_disks),
        }
    }

    fn change_disks(&mut self, message: Message) {
        match message {
            Message::DiskJoin { pool, member, answer } => {
                let joined = self.pool(pool).and_then(|pool| pool.join(*member));
                let _ = answer.send(joined);
            }
            Message::DiskDrain { pool, disk, is_draining, answer } => {
                let done = self.pool(pool).and_then(|pool| pool.drain(disk, is_draining));
                let _ = answer.send(done);
            }
            Message::DiskLeave { pool, disk, answer } => match self.pool(pool) {
                Ok(pool) => pool.leave(disk, answer),
                Err(refusal) => {
                    let _ = answer.send(Err(refusal));
                }
            },
            about_scrubs @ (Message::Scrub { .. } | Message::Scrubs { .. }) => {
                self.scrub(about_scrubs);
            }
            between_workers => self.carry_out_between(between_workers),
        }
    }

    /// What makes and ends the ways between workers.
    fn carry_out_between(&mut self, message: Message) {
        match message {
            Message::HostBegin { hosted } => {
                self.hosted.push(*hosted);
                self.watch_version += 1;
            }
            Message::HostEnd { host, answer } => {
                // Without it the answer is dropped, and its asker hears that.
                if let Some(hosted) = self.hosted.iter_mut().find(|known| known.id == host) {
                    hosted.leave(answer);
                }
            }
            // Of a disk that another worker owns, that one is told too.
            Message::HostScrub { pool, disk, order, answer } => {
                let is_meant = |hosted: &&mut Hosted| {
                    hosted.pool == pool && disk.is_none_or(|disk| disk == hosted.disk)
                };
                self.hosted.iter_mut().filter(is_meant).for_each(|hosted| hosted.scrub(order));
                let _ = answer.send(Ok(()));
            }
            Message::HostScrubs { pool, answer } => {
                let now = self.time.now;
                let of_pool = self.hosted.iter().filter(|hosted| hosted.pool == pool);
                let _ = answer.send(Ok(of_pool.map(|hosted| hosted.scrub_facts(now)).collect()));
            }
            Message::Hosted { answer } => {
                let _ = answer.send(self.hosted.iter().map(Hosted::facts).collect());
            }
            Message::Checkpoint => {
                for pool in &mut self.pools {
                    let seats = pool.volumes.store_mut().stores_mut();
                    let stores = seats.filter_map(|(_, seat)| seat.here_mut());
                    stores.for_each(DiskStore::request_checkpoint);
                }
                for hosted in &mut self.hosted {
                    hosted.host.store_mut().request_checkpoint();
                }
            }
            Message::DoorOpen { door } => self.doors.push(*door),
            Message::DoorClose { pool } => self.doors.retain(|door| door.pool != pool),
            Message::GuestsCome { pool, guests } => {
                if let Ok(pool) = self.pool(pool) {
                    pool.admit(*guests);
                }
            }
            Message::Pin { cpu, answer } => {
                let _ = answer.send(pin_to(cpu));
            }
            _ => unreachable!("every message has been given to those whom it is about"),
        }
    }

    fn scrub(&mut self, message: Message) {
        match message {
            Message::Scrub { pool, disk, order, answer } => {
                let done = self.pool(pool).and_then(|pool| pool.scrub(disk, order));
                let _ = answer.send(done);
            }
            Message::Scrubs { pool, answer } => {
                let now = self.time.now;
                let _ = answer.send(self.pool(pool).map(|pool| pool.scrubs(now)));
            }
            _ => unreachable!("the caller gives only what is about scrubs"),
        }
    }

    fn attachment(&mut self, token: DeviceToken) -> Option<&mut Attachment> {
        let place = self.attachments.get_mut(place_of(token) as usize)?;
        place.as_mut().filter(|attachment| attachment.token == token)
    }

    fn attach(&mut self, spec: AttachSpec) -> Result<Attached, EngineRefusal> {
        let held = self.hold(spec.pool, spec.volume)?;
        let handle = held.handle;
        let account = self.pool(spec.pool)?.fair.join();
        let attached = self.serve(spec, held, account);
        if attached.is_err() {
            let pool = self.pool(spec.pool)?;
            pool.fair.leave(account);
            let _ = pool.volumes.detach(handle);
        }
        attached
    }

    /// The volume is held by whoever asks, who also lets go of it.
    fn attach_far(&mut self, spec: AttachSpec, held: Held) -> Result<Attached, EngineRefusal> {
        let missing = EngineRefusal::PoolMissing { pool: spec.pool };
        let door = self.doors.iter_mut().position(|door| door.pool == spec.pool);
        let door = door.ok_or(missing)?;
        let account = self.doors[door].fair.join();
        let attached = self.serve(spec, held, account);
        if attached.is_err() {
            self.doors[door].fair.leave(account);
        }
        attached
    }

    fn serve(
        &mut self,
        spec: AttachSpec,
        held: Held,
        account: Account,
    ) -> Result<Attached, EngineRefusal> {
        let size = held.status.size;
        if !size.is_multiple_of(SECTOR_SIZE) {
            return Err(EngineRefusal::Size { size });
        }
        let class = Arc::new(BlkClass::new(BlkOptions {
            capacity: size / SECTOR_SIZE,
            is_read_only: spec.is_read_only,
            queues: spec.queues,
            serial: serial(spec.volume),
            discard_unit: DISCARD_UNIT,
        }));
        let place = match self.attachments.iter().position(Option::is_none) {
            Some(place) => place,
            None => {
                self.attachments.push(None);
                self.attachments.len() - 1
            }
        };
        self.next_token += 1;
        let count = self.next_token << 32 & ((1 << WORKER_SHIFT) - 1);
        let token = DeviceToken(u64::from(self.number) << WORKER_SHIFT | count | place as u64);
        let slot = self.metrics.claim(Kind::Attachment, spec.pool.0, spec.volume.0);
        let pace = Pace::new(spec.limits, account, self.time.now);
        let class_here = Arc::clone(&class);
        let (handle, is_null) = (held.handle, held.is_null);
        let attachment = Attachment::new(token, spec, class_here, handle, is_null, pace, slot);
        self.attachments[place] = Some(attachment);
        Ok(Attached { token, class })
    }

    fn hold(&mut self, pool: PoolId, volume: VolumeId) -> Result<Held, EngineRefusal> {
        let pool = self.known(pool)?;
        let is_null = pool.disks().any(PoolDisk::is_null);
        let volumes = &mut pool.volumes;
        // One user at a time: two guests, or a guest and an import, would write over each other.
        if volumes.status(volume).is_some_and(|status| status.is_attached) {
            return Err(VolumeRefusal::Attached.into());
        }
        let handle = volumes.attach(volume)?;
        let status = volumes.status(volume).expect("a volume that was just attached is there");
        Ok(Held { handle, status, is_null })
    }

    fn hold_snapshot(
        &mut self,
        pool: PoolId,
        volume: VolumeId,
        snapshot: SnapshotId,
    ) -> Result<Held, EngineRefusal> {
        let volumes = &mut self.known(pool)?.volumes;
        let handle = volumes.attach_snapshot(volume, snapshot)?;
        let mut status = volumes.status(volume).ok_or(VolumeRefusal::NotFound)?;
        status.size = volumes.size(handle)?;
        Ok(Held { handle, status, is_null: false })
    }

    fn snapshots(
        &mut self,
        pool: PoolId,
        volume: VolumeId,
    ) -> Result<Vec<SnapshotStatus>, EngineRefusal> {
        let missing = EngineRefusal::Volume(VolumeRefusal::NotFound);
        self.known(pool)?.volumes.snapshots(volume).ok_or(missing)
    }

    fn attachment_facts(&self) -> Vec<AttachmentFacts> {
        let facts = |attachment: &Attachment| AttachmentFacts {
            pool: attachment.spec.pool,
            volume: attachment.spec.volume,
            is_up: attachment.device.is_up(),
            counters: attachment.device.counters(),
        };
        self.attachments.iter().flatten().map(facts).collect()
    }

    fn take_events(&mut self) -> usize {
        let mut taken = 0;
        while let Ok(event) = self.events.try_recv() {
            taken += 1;
            // A queue of a device that is gone is dropped, and so is a ticket: both tell the
            // device's thread that nobody touches the ring any more.
            if let Some(attachment) = self.attachment(event.device) {
                attachment.change(event.change);
            }
        }
        taken
    }

    /// Gives each attachment its turn. Where a pool has light volumes beside heavy ones, the
    /// light ones go first, so that they wait for what is under way only.
    fn poll_attachments(&mut self) -> usize {
        let mut has_order = false;
        for pool in &mut self.pools {
            pool.fair.begin_round(self.time.now);
            has_order |= pool.fair.has_order();
        }
        for door in &mut self.doors {
            door.fair.begin_round(self.time.now);
            has_order |= door.fair.has_order();
        }
        if has_order {
            return self.give_turns(Some(true)) + self.give_turns(Some(false)) + self.owed();
        }
        self.give_turns(None) + self.owed()
    }

    fn give_turns(&mut self, light: Option<bool>) -> usize {
        let mut moved = 0;
        for attachment in self.attachments.iter_mut().flatten() {
            let pool = attachment.spec.pool;
            let is_due = |fair: &Fair| {
                light.is_none_or(|light| fair.is_light(attachment.pace.account()) == light)
            };
            if let Some(pool) = self.pools.iter_mut().find(|known| known.id == pool) {
                if is_due(&pool.fair) {
                    moved += attachment.poll(pool, &mut self.means, &self.time);
                }
            } else if let Some(door) = self.doors.iter_mut().find(|known| known.pool == pool)
                && is_due(&door.fair)
            {
                moved += attachment.poll(door, &mut self.means, &self.time);
            }
        }
        moved
    }

    /// Pools where somebody waits for nothing but another round.
    fn owed(&self) -> usize {
        let pools = self.pools.iter().filter(|pool| pool.fair.is_owed()).count();
        pools + self.doors.iter().filter(|door| door.fair.is_owed()).count()
    }

    fn poll_pools(&mut self, now: Moment) -> usize {
        let mut moved = 0;
        for pool in &mut self.pools {
            moved += pool.poll(now, &mut self.landed);
            self.watch_version += u64::from(pool.take_disk_change());
        }
        for door in &mut self.doors {
            moved += door.poll(&mut self.landed);
        }
        for hosted in &mut self.hosted {
            moved += hosted.poll(now);
        }
        let ended = cycles();
        for completion in self.landed.drain(..) {
            let number = u32::try_from(completion.tag.0).unwrap_or(u32::MAX);
            let Some(flight) = self.means.flights.land(number) else { continue };
            let place = self.attachments.get_mut(flight.attachment as usize);
            // An attachment stays until its last piece has landed.
            if let Some(attachment) = place.and_then(Option::as_mut) {
                if let Some(fair) = fair_of(&mut self.pools, &mut self.doors, attachment.spec.pool)
                {
                    let cost = cost_of(u64::from(flight.piece.length));
                    let ticks = ended.saturating_sub(flight.times.looked);
                    fair.end(attachment.pace.account(), cost, ticks);
                }
                attachment.land(&flight, completion, &mut self.means, ended);
            }
        }
        moved
    }

    /// Shows what the stores count, now and then.
    fn show_stores(&mut self, now: Moment) {
        if now.saturating_sub(self.shown_at) >= SHOW_EVERY {
            self.shown_at = now;
            self.pools.iter().for_each(Pool::show);
            self.hosted.iter().for_each(Hosted::show);
        }
    }

    /// Ends what was asked to end and has nothing under way any more.
    fn settle(&mut self) -> usize {
        let mut settled = 0;
        for place in &mut self.attachments {
            let Some(attachment) = place else { continue };
            let Some(answer) = attachment.take_left() else { continue };
            let (pool, handle) = (attachment.spec.pool, attachment.handle());
            if let Some(pool) = self.pools.iter_mut().find(|known| known.id == pool) {
                pool.fair.leave(attachment.pace.account());
                let _ = pool.volumes.detach(handle);
            } else if let Some(door) = self.doors.iter_mut().find(|known| known.pool == pool) {
                // The volume is let go by whoever asked for this.
                door.fair.leave(attachment.pace.account());
            }
            *place = None;
            self.watch_version += 1;
            settled += 1;
            let _ = answer.send(Ok(()));
        }
        let before = self.pools.len();
        if self.pools.iter().any(Pool::is_ending) {
            let (ended, rest): (Vec<_>, Vec<_>) =
                std::mem::take(&mut self.pools).into_iter().partition(Pool::has_ended);
            self.pools = rest;
            for pool in ended {
                self.watch_version += 1;
                pool.end();
            }
        }
        let ended = before - self.pools.len();
        settled + ended + self.settle_hosted()
    }

    fn settle_hosted(&mut self) -> usize {
        let mut ended = 0;
        while let Some(at) = self.hosted.iter().position(Hosted::has_left) {
            self.hosted.swap_remove(at).end();
            self.watch_version += 1;
            ended += 1;
        }
        ended
    }

    fn flush(&mut self) {
        for attachment in self.attachments.iter_mut().flatten() {
            attachment.flush();
            while attachment.device.take_kick_change().is_some() {
                self.watch_version += 1;
            }
        }
    }
}

impl Poller for Engine {
    fn poll(&mut self, now: Moment) -> usize {
        let cycles = cycles();
        let looked = if self.was_busy { self.time.cycles } else { cycles };
        self.time = RoundTime { now, cycles, looked };
        self.means.slow.turn(cycles);
        self.show_stores(now);
        let told = self.take_messages() + self.take_events();
        let moved = self.poll_attachments() + self.poll_pools(now);
        self.was_busy = moved > 0;
        self.flush();
        told + moved + self.settle()
    }

    /// When the first request passes that only its volume's limits hold.
    fn deadline(&self) -> Option<Moment> {
        let attachments = self.attachments.iter().flatten();
        let paces = attachments.filter_map(|attachment| attachment.pace.deadline());
        let pools = self.pools.iter().filter_map(Pool::deadline);
        paces.chain(pools).chain(self.hosted.iter().filter_map(Hosted::deadline)).min()
    }

    fn arm(&mut self) -> Wake {
        for attachment in self.attachments.iter_mut().flatten() {
            // Whatever is there already is found by the round that follows.
            let _ = attachment.device.arm_kicks();
        }
        // From here on whoever puts something into a ring wakes this worker.
        self.bell.arm();
        let announces =
            self.pools.iter().all(Pool::announces) && self.hosted.iter().all(Hosted::announces);
        if announces { Wake::Descriptors } else { Wake::Timer }
    }

    fn disarm(&mut self) {
        self.bell.disarm();
        for attachment in self.attachments.iter_mut().flatten() {
            attachment.device.disarm_kicks();
        }
    }

    fn watch(&self, watch: &mut dyn FnMut(BorrowedFd<'_>)) {
        watch(self.inbox.as_fd());
        watch(self.bell.as_fd());
        for descriptor in self.hosted.iter().filter_map(|hosted| hosted.disk().descriptor()) {
            watch(descriptor);
        }
        for pool in &self.pools {
            for descriptor in pool.disks().filter_map(PoolDisk::descriptor) {
                watch(descriptor);
            }
        }
        for attachment in self.attachments.iter().flatten() {
            attachment.device.watch_kicks(watch);
        }
    }

    fn watch_version(&self) -> u64 {
        self.watch_version
    }
}

/// The fairness of a pool, wherever that is.
fn fair_of<'a>(pools: &'a mut [Pool], doors: &'a mut [Door], pool: PoolId) -> Option<&'a mut Fair> {
    match pools.iter_mut().find(|known| known.id == pool) {
        Some(pool) => Some(&mut pool.fair),
        None => doors.iter_mut().find(|known| known.pool == pool).map(|door| &mut door.fair),
    }
}

/// What a guest sees as the disk's serial: the volume's number.
fn serial(volume: VolumeId) -> [u8; 20] {
    let mut serial = [0; 20];
    for (place, byte) in serial.iter_mut().zip(volume.to_string().bytes()) {
        *place = byte;
    }
    serial
}
