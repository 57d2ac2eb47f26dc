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
use crate::flight::Flights;
use crate::message::{AttachSpec, Attached, AttachmentFacts, EngineRefusal, Held, Message};
use crate::pace::{Pace, RoundTime};
use crate::place::PoolDisk;
use crate::pool::Pool;
use crate::slow::SlowLog;
use crate::worker::Instruments;
use crossbeam_channel::Receiver;
use plinth_backends::blk::{BlkClass, BlkOptions, SECTOR_SIZE};
use plinth_backends::{DeviceToken, QueueEvent};
use plinth_ids::{Moment, PoolId, SnapshotId, VolumeId};
use plinth_metrics::{Kind, Metrics};
use plinth_qos::cost_of;
use plinth_rt::{Inbox, Poller, Wake, cycles};
use plinth_store::BufferPool;
use plinth_volume::{VolumeCompletion, VolumeRefusal};
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

#[derive(Debug)]
pub(crate) struct Engine {
    inbox: Inbox<Message>,
    events: Receiver<QueueEvent>,
    pools: Vec<Pool>,
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
        inbox: Inbox<Message>,
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
            inbox,
            events,
            pools: Vec::new(),
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
                let _ = answer.send(self.pool(pool).map(|pool| pool.volumes.list()));
            }
            Message::Slow { limit, answer } => {
                let _ = answer.send(self.means.slow.list(limit));
            }
            Message::Snapshots { pool, volume, answer } => {
                let found = self.pool(pool).and_then(|pool| {
                    let missing = EngineRefusal::Volume(VolumeRefusal::NotFound);
                    pool.volumes.snapshots(volume).ok_or(missing)
                });
                let _ = answer.send(found);
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
            about_scrubs => self.scrub(about_scrubs),
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
        let size = held.status.size;
        if !size.is_multiple_of(SECTOR_SIZE) {
            let _ = self.pool(spec.pool)?.volumes.detach(held.handle);
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
        let token = DeviceToken(self.next_token << 32 | place as u64);
        let now = self.time.now;
        let pool = self.pool(spec.pool)?;
        let is_null = pool.disks().any(PoolDisk::is_null);
        let slot = self.metrics.claim(Kind::Attachment, spec.pool.0, spec.volume.0);
        let pool = self.pool(spec.pool)?;
        let pace = Pace::new(spec.limits, pool.fair.join(), now);
        let attachment =
            Attachment::new(token, spec, Arc::clone(&class), held.handle, is_null, pace, slot);
        self.attachments[place] = Some(attachment);
        Ok(Attached { token, class })
    }

    fn hold(&mut self, pool: PoolId, volume: VolumeId) -> Result<Held, EngineRefusal> {
        let volumes = &mut self.pool(pool)?.volumes;
        // One user at a time: two guests, or a guest and an import, would write over each other.
        if volumes.status(volume).is_some_and(|status| status.is_attached) {
            return Err(VolumeRefusal::Attached.into());
        }
        let handle = volumes.attach(volume)?;
        let status = volumes.status(volume).expect("a volume that was just attached is there");
        Ok(Held { handle, status })
    }

    fn hold_snapshot(
        &mut self,
        pool: PoolId,
        volume: VolumeId,
        snapshot: SnapshotId,
    ) -> Result<Held, EngineRefusal> {
        let volumes = &mut self.pool(pool)?.volumes;
        let handle = volumes.attach_snapshot(volume, snapshot)?;
        let mut status = volumes.status(volume).ok_or(VolumeRefusal::NotFound)?;
        status.size = volumes.size(handle)?;
        Ok(Held { handle, status })
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
        if has_order {
            return self.give_turns(Some(true)) + self.give_turns(Some(false)) + self.owed();
        }
        self.give_turns(None) + self.owed()
    }

    fn give_turns(&mut self, light: Option<bool>) -> usize {
        let mut moved = 0;
        for attachment in self.attachments.iter_mut().flatten() {
            let pool = attachment.spec.pool;
            let Some(pool) = self.pools.iter_mut().find(|known| known.id == pool) else { continue };
            if light.is_none_or(|light| pool.fair.is_light(attachment.pace.account()) == light) {
                moved += attachment.poll(pool, &mut self.means, &self.time);
            }
        }
        moved
    }

    /// Pools where somebody waits for nothing but another round.
    fn owed(&self) -> usize {
        self.pools.iter().filter(|pool| pool.fair.is_owed()).count()
    }

    fn poll_pools(&mut self, now: Moment) -> usize {
        let mut moved = 0;
        for pool in &mut self.pools {
            moved += pool.poll(now, &mut self.landed);
            self.watch_version += u64::from(pool.take_disk_change());
        }
        let ended = cycles();
        for completion in self.landed.drain(..) {
            let number = u32::try_from(completion.tag.0).unwrap_or(u32::MAX);
            let Some(flight) = self.means.flights.land(number) else { continue };
            let place = self.attachments.get_mut(flight.attachment as usize);
            // An attachment stays until its last piece has landed.
            if let Some(attachment) = place.and_then(Option::as_mut) {
                let pool = attachment.spec.pool;
                if let Some(pool) = self.pools.iter_mut().find(|known| known.id == pool) {
                    let cost = cost_of(u64::from(flight.piece.length));
                    let ticks = ended.saturating_sub(flight.times.looked);
                    pool.fair.end(attachment.pace.account(), cost, ticks);
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
        settled + ended
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
        paces.chain(self.pools.iter().filter_map(Pool::deadline)).min()
    }

    fn arm(&mut self) -> Wake {
        for attachment in self.attachments.iter_mut().flatten() {
            // Whatever is there already is found by the round that follows.
            let _ = attachment.device.arm_kicks();
        }
        if self.pools.iter().all(Pool::announces) { Wake::Descriptors } else { Wake::Timer }
    }

    fn disarm(&mut self) {
        for attachment in self.attachments.iter_mut().flatten() {
            attachment.device.disarm_kicks();
        }
    }

    fn watch(&self, watch: &mut dyn FnMut(BorrowedFd<'_>)) {
        watch(self.inbox.as_fd());
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

/// What a guest sees as the disk's serial: the volume's number.
fn serial(volume: VolumeId) -> [u8; 20] {
    let mut serial = [0; 20];
    for (place, byte) in serial.iter_mut().zip(volume.to_string().bytes()) {
        *place = byte;
    }
    serial
}
