// SPDX-License-Identifier: Apache-2.0
//! Which backend a client had, for listeners that give it the same one again.
//!
//! A fixed number of clients is remembered, four in a set. A newcomer takes the place of what is
//! over its time, else of the one that is over it first. Who was forgotten is balanced like a
//! stranger; connections do not ask here.

use crate::flow::{FlowKey, FlowTable, milliseconds};
use plinth_ids::Moment;

const WAYS: usize = 4;

#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
struct Record {
    /// The client's address and the listener's place.
    key: FlowKey,
    /// The backend's place.
    backend: u32,
    /// In milliseconds, wrapping.
    until: u32,
    is_taken: bool,
}

const _: () = assert!(size_of::<Record>() == 64, "a record is one cache line");

const EMPTY: Record =
    Record { key: FlowKey { words: [0; 6] }, backend: 0, until: 0, is_taken: false };

#[derive(Debug)]
pub(crate) struct Clients {
    records: Box<[Record]>,
}

impl Clients {
    pub(crate) fn new(count: u32) -> Self {
        let count = (count as usize).next_power_of_two().max(WAYS);
        Self { records: vec![EMPTY; count].into() }
    }

    fn set(&self, flows: &FlowTable, key: &FlowKey) -> usize {
        (flows.hash(key) & 0xffff_ffff) as usize & (self.records.len() / WAYS - 1)
    }

    /// The place of the backend that the client of a packet had at a listener.
    pub(crate) fn find(
        &self,
        now: Moment,
        flows: &FlowTable,
        packet: &FlowKey,
        listener: u32,
    ) -> Option<u32> {
        let key = client_of(packet, listener);
        let first = self.set(flows, &key) * WAYS;
        let now = milliseconds(now);
        let mut set = self.records[first..first + WAYS].iter();
        let found = set.find(|record| record.left(now) > 0 && record.key.is(&key));
        found.map(|record| record.backend)
    }

    pub(crate) fn remember(
        &mut self,
        now: Moment,
        flows: &FlowTable,
        packet: &FlowKey,
        (listener, backend): (u32, u32),
        kept: u32,
    ) {
        let key = client_of(packet, listener);
        let first = self.set(flows, &key) * WAYS;
        let now = milliseconds(now);
        let rank = |record: &Record| {
            if record.key.is(&key) { (0, 0) } else { (1, record.left(now)) }
        };
        let set = self.records[first..first + WAYS].iter_mut();
        let record = set.into_iter().min_by_key(|record| rank(record));
        *record.expect("a set has places") =
            Record { key, backend, until: now.wrapping_add(kept), is_taken: true };
    }
}

impl Record {
    /// Milliseconds until it is forgotten.
    const fn left(&self, now: u32) -> u32 {
        let left = self.until.wrapping_sub(now).cast_signed();
        if self.is_taken && left > 0 { left.cast_unsigned() } else { 0 }
    }
}

fn client_of(packet: &FlowKey, listener: u32) -> FlowKey {
    let [a, b, ..] = packet.words;
    let source = if packet.is_ipv4() { [a & 0xffff_ffff, 0] } else { [a, b] };
    FlowKey { words: [source[0], source[1], u64::from(packet.is_ipv4()), 0, 0, listener.into()] }
}
