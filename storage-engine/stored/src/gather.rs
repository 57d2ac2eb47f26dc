// SPDX-License-Identifier: Apache-2.0
//! What concerns several workers at once: disks and attachments away from their pool's worker, and
//! what is known of a pool in more than one place.

use crate::door::door;
use crate::format::unmount_store;
use crate::hosted::Hosted;
use crate::message::{AttachSpec, Attached, EngineRefusal, Message, PoolFacts};
use crate::place::DiskStore;
use crate::scrub::{Order, ScrubFacts};
use crate::seat::{DiskSeat, Far};
use crate::slow::Slow;
use crate::worker::WorkerPort;
use plinth_backends::DeviceToken;
use plinth_ids::{DiskId, PoolId};
use plinth_relay::relay;
use plinth_span::DiskCondition;
use plinth_store::Rest;
use std::time::{Duration, Instant};

impl WorkerPort {
    /// Gives a mounted disk to the worker that is to own it, and a seat for it to its pool, which
    /// [`WorkerPort::settle`] has a worker for.
    pub(crate) fn seat(
        &self,
        pool: PoolId,
        disk: DiskId,
        worker: usize,
        store: DiskStore,
    ) -> Result<DiskSeat, EngineRefusal> {
        let home = self.home(pool);
        if worker == home {
            return Ok(DiskSeat::Here(store));
        }
        let (store, host) = relay(store, self.bell(home)?, self.bell(worker)?);
        let id = self.new_host();
        let hosted = Hosted { id, pool, disk, host: Box::new(host), leaving: None };
        self.tell_to(worker, Message::HostBegin { hosted: Box::new(hosted) })?;
        Ok(DiskSeat::There(Box::new(Far { store, worker, host: id })))
    }

    /// Takes a seat apart that its pool has let go of, and lets go of the disk, which waits for it.
    pub(crate) fn unmount(&self, seat: DiskSeat) -> Option<Rest> {
        match self.take_back(seat) {
            Ok(store) => unmount_store(store),
            // Only a worker that has ended does not give it back.
            Err(error) => {
                tracing::error!(%error, "a disk was not unmounted");
                None
            }
        }
    }

    fn take_back(&self, seat: DiskSeat) -> Result<DiskStore, EngineRefusal> {
        match seat {
            DiskSeat::Here(store) => Ok(store),
            DiskSeat::There(far) => {
                let Far { store, worker, host } = *far;
                drop(store);
                let taken = self.ask_of(worker, |answer| Message::HostEnd { host, answer });
                taken.map(|store| *store)
            }
        }
    }

    /// Attaches a volume at a worker.
    pub(crate) fn attach(
        &self,
        spec: AttachSpec,
        worker: usize,
    ) -> Result<Attached, EngineRefusal> {
        let pool = spec.pool;
        if worker == self.home(pool) {
            return self.ask(|answer| Message::Attach { spec, answer });
        }
        self.open_door(pool, worker)?;
        let held = self.ask(|answer| Message::Hold { pool, volume: spec.volume, answer })?;
        let (handle, held) = (held.handle, Box::new(held));
        let attached = self.ask_of(worker, |answer| Message::AttachFar { spec, held, answer });
        match &attached {
            Ok(attached) => self.note_held(attached.token, pool, handle),
            Err(_) => self.tell(Message::Release { pool, handle })?,
        }
        attached
    }

    /// Waits for the last request of an attachment and forgets it. Its device has stopped.
    pub(crate) fn detach(&self, token: DeviceToken) -> Result<(), EngineRefusal> {
        self.ask(|answer| Message::Detach { token, answer })?;
        match self.forget_held(token) {
            Some((pool, handle)) => self.tell(Message::Release { pool, handle }),
            None => Ok(()),
        }
    }

    fn open_door(&self, pool: PoolId, worker: usize) -> Result<(), EngineRefusal> {
        let (asker, keeper) = (self.bell(worker)?, self.bell(self.home(pool))?);
        if !self.note_door(pool, worker) {
            return Ok(());
        }
        let (door, guests) = door(pool, asker, keeper);
        self.tell(Message::GuestsCome { pool, guests: Box::new(guests) })?;
        self.tell_to(worker, Message::DoorOpen { door: Box::new(door) })
    }

    /// The pool has no attachments any more, and goes.
    pub(crate) fn close_doors(&self, pool: PoolId) {
        for worker in self.forget_doors(pool) {
            // A worker that has ended has no doors.
            let _ = self.tell_to(worker, Message::DoorClose { pool });
        }
    }

    /// All pools, with what the owners of their disks know of them.
    pub(crate) fn pool_facts(&self) -> Result<Vec<PoolFacts>, EngineRefusal> {
        let mut pools = self.look(|answer| Message::Pools { answer })?;
        if self.count() < 2 {
            return Ok(pools);
        }
        for hosted in self.look(|answer| Message::Hosted { answer })? {
            let Some(pool) = pools.iter_mut().find(|pool| pool.pool == hosted.pool) else {
                continue;
            };
            let is_it = |known: &&mut crate::message::DiskFacts| known.disk.disk == hosted.disk;
            let Some(disk) = pool.disks.iter_mut().find(is_it) else { continue };
            disk.counters = hosted.counters;
            disk.bad_blocks = hosted.bad_blocks;
            pool.checksum_errors += hosted.counters.bad_blocks;
            pool.costs.system_calls += hosted.system_calls;
            pool.costs.disk_bytes_read += hosted.counters.disk_bytes_read;
            pool.costs.disk_bytes_written += hosted.counters.disk_bytes_written;
        }
        Ok(pools)
    }

    /// Has every disk write a checkpoint while guests go on, and waits for that, but not longer
    /// than `patience`. What is in the journals then is what came meanwhile.
    pub(crate) fn checkpoint(&self, patience: Duration) {
        let count = |pools: Vec<PoolFacts>| -> Vec<(PoolId, DiskId, u64)> {
            let disks = |pool: PoolFacts| {
                let disks = pool
                    .disks
                    .into_iter()
                    .filter(|disk| disk.disk.condition == DiskCondition::Working);
                disks
                    .map(|disk| (pool.pool, disk.disk.disk, disk.counters.checkpoints))
                    .collect::<Vec<_>>()
            };
            pools.into_iter().flat_map(disks).collect()
        };
        let deadline = Instant::now() + patience;
        // A worker that has ended has nothing to write.
        let Ok(before) = self.pool_facts().map(count) else { return };
        for worker in 0..self.count() {
            let _ = self.tell_to(worker, Message::Checkpoint);
        }
        while Instant::now() < deadline {
            let Ok(now) = self.pool_facts().map(count) else { return };
            let has_one = |&(pool, disk, old): &(PoolId, DiskId, u64)| {
                let known = now.iter().find(|known| (known.0, known.1) == (pool, disk));
                known.is_none_or(|known| known.2 > old)
            };
            if before.iter().all(has_one) {
                return;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        tracing::warn!(
            ?patience,
            "not every disk wrote a checkpoint; the hand-over will take longer"
        );
    }

    /// The newest slow requests of all workers, newest first.
    pub(crate) fn slow_requests(&self, limit: usize) -> Result<Vec<Slow>, EngineRefusal> {
        let mut all = self.look(|answer| Message::Slow { limit, answer })?;
        if self.count() > 1 {
            all.sort_by_key(|slow| std::cmp::Reverse(slow.ended));
            all.truncate(limit);
        }
        Ok(all)
    }

    /// Begins or ends a scrub of one disk or of all, whoever owns them.
    pub(crate) fn scrub(
        &self,
        pool: PoolId,
        disk: Option<DiskId>,
        order: Order,
    ) -> Result<(), EngineRefusal> {
        // The pool's worker knows whether there is such a disk.
        self.ask(|answer| Message::Scrub { pool, disk, order, answer })?;
        for worker in 0..self.count() {
            self.ask_of(worker, |answer| Message::HostScrub { pool, disk, order, answer })?;
        }
        Ok(())
    }

    pub(crate) fn scrubs(&self, pool: PoolId) -> Result<Vec<ScrubFacts>, EngineRefusal> {
        let mut all = self.ask(|answer| Message::Scrubs { pool, answer })?;
        if self.count() > 1 {
            for worker in 0..self.count() {
                all.extend(self.ask_of(worker, |answer| Message::HostScrubs { pool, answer })?);
            }
            all.sort_by_key(ScrubFacts::disk);
        }
        Ok(all)
    }
}
