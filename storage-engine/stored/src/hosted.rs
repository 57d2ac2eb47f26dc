// SPDX-License-Identifier: Apache-2.0
//! A disk that this worker owns for a pool that another worker keeps.

use crate::message::Answer;
use crate::place::{DiskStore, PoolDisk};
use crate::scrub::{Order, ScrubFacts};
use crate::seat::HostId;
use plinth_ids::{DiskId, Moment, PoolId};
use plinth_relay::RelayHost;
use plinth_store::StoreCounters;

#[derive(Debug)]
pub(crate) struct Hosted {
    pub(crate) id: HostId,
    pub(crate) pool: PoolId,
    pub(crate) disk: DiskId,
    pub(crate) host: Box<RelayHost<DiskStore>>,
    /// Who waits to have the store back.
    pub(crate) leaving: Option<Answer<Box<DiskStore>>>,
}

/// What only the owner of a disk knows of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HostedFacts {
    pub(crate) pool: PoolId,
    pub(crate) disk: DiskId,
    pub(crate) bad_blocks: u64,
    pub(crate) counters: StoreCounters,
    pub(crate) system_calls: u64,
}

impl Hosted {
    pub(crate) fn poll(&mut self, now: Moment) -> usize {
        usize::from(self.host.poll(now))
    }

    pub(crate) fn disk(&self) -> &PoolDisk {
        self.host.store().disk()
    }

    /// Whether a sleeping worker is woken when something can go on, its ring's bell aside.
    pub(crate) fn announces(&self) -> bool {
        let store = self.host.store();
        let is_told = store.is_idle() || store.disk().descriptor().is_some();
        // A disk that hangs tells nobody when it is given up.
        is_told && store.scrub_progress().is_none() && self.leaving.is_none()
    }

    /// When freed space is given back to its device.
    pub(crate) fn deadline(&self) -> Option<Moment> {
        self.host.store().deadline()
    }

    /// Asks for the store, whose pool has let go of it.
    pub(crate) fn leave(&mut self, answer: Answer<Box<DiskStore>>) {
        self.host.store_mut().scrub_stop();
        self.host.store_mut().stop_discards();
        self.host.store_mut().disk_mut().be_patient(true);
        self.leaving = Some(answer);
    }

    /// Whether it may go to another thread: nothing is under way, of the pool or of the store.
    pub(crate) fn has_left(&self) -> bool {
        self.leaving.is_some() && self.host.under_way() == 0 && self.disk().is_idle()
    }

    pub(crate) fn end(self) {
        if let Some(answer) = self.leaving {
            // An asker that is gone was the last: the disk is then mended at its next mount.
            let _ = answer.send(Ok(Box::new(self.host.into_store())));
        }
    }

    pub(crate) fn show(&self) {
        if let Some(meter) = self.disk().meter() {
            meter.show(&self.host.store().counters());
        }
    }

    pub(crate) fn facts(&self) -> HostedFacts {
        let store = self.host.store();
        HostedFacts {
            pool: self.pool,
            disk: self.disk,
            bad_blocks: store.bad_block_count() as u64,
            counters: store.counters(),
            system_calls: self.disk().system_calls(),
        }
    }

    pub(crate) fn scrub(&mut self, order: Order) {
        order.give(self.host.store_mut());
    }

    pub(crate) fn scrub_facts(&self, now: Moment) -> ScrubFacts {
        ScrubFacts::of(self.disk, self.host.store(), now)
    }
}
