// SPDX-License-Identifier: Apache-2.0
//! Mappings: which address and port outside stands for an address and port inside, whoever is
//! spoken to (ADR-125).
//!
//! ```text
//!  forward entry   NIC's place, 10.0.0.2:1000  -> 0.0.0.0:0     no packet has such a key
//!  back entry      uplink,      0.0.0.0:0      -> 198.51.100.9:1100
//! ```
//!
//! A mapping is a connection without packets: so it takes of its NIC's share, ages, is handed
//! over and gives way as connections do. Ageing looks at the whole table by and by, and has each
//! connection that it leaves prolong the mapping of its inside end; packets touch no mapping.

use super::connection::{Connection, Direction, Tracked};
use super::edit::Edit;
use super::table::{FlowTable, NoRoom, Slot, milliseconds};
use super::{FlowKey, Ingress, Tcp};
use crate::PortIndex;
use crate::external::OUTSIDE;
use plinth_ids::Moment;
use std::net::{IpAddr, Ipv4Addr};

impl FlowTable {
    /// The address and port that stand outside for the sender of packets with this key.
    pub(crate) fn mapped_end(&self, key: &FlowKey) -> Option<(Ipv4Addr, u16)> {
        let slot = self.mapping(&key.mapping()?, Direction::Forward)?;
        let going = self.edit(self.entry(slot).link).applied(key);
        match going.addresses() {
            (IpAddr::V4(address), _) => Some((address, going.source_port())),
            _ => None,
        }
    }

    /// Whether the sender of packets that go out as `going` has an end that is mapped already.
    pub(crate) fn is_end_taken(&self, going: &FlowKey, outside: Ingress) -> bool {
        let back = going.mapping().and_then(|key| key.answer(outside));
        back.is_some_and(|back| self.mapping(&back, Direction::Back).is_some())
    }

    /// The key of the mapping, as of a packet from inside, to whose outer end a packet is sent.
    pub(crate) fn inside_of(&self, key: &FlowKey, outside: Ingress) -> Option<FlowKey> {
        let back = key.answer(outside)?.mapping()?.answer(outside)?;
        let slot = self.mapping(&back, Direction::Back)?;
        let (connection, _) = self.entry(slot).link.get()?;
        Some(self.entry(self.connection(connection).entry(Direction::Forward)?).key)
    }

    /// Has the end outside of packets that go as `going` stand for that inside from which they
    /// come as `key`. What stood for it before does so no more, unless it is the same.
    pub(crate) fn map(
        &mut self,
        now: Moment,
        (key, going): (&FlowKey, &FlowKey),
        outside: Ingress,
        owner: PortIndex,
    ) -> Result<(), NoRoom> {
        let (Some(from), Some(to)) = (key.mapping(), going.mapping()) else { return Ok(()) };
        let Some(back) = to.answer(outside) else { return Ok(()) };
        if let Some(slot) = self.mapping(&from, Direction::Forward) {
            if self.mapped_end(key) == ends(going) {
                self.buckets[slot.bucket()].used[slot.way()] = milliseconds(now);
                return Ok(());
            }
            self.remove(slot);
        }
        if self.mapping(&back, Direction::Back).is_some() {
            // A connection that has outlived its own mapping; the end is another's now.
            return Ok(());
        }
        let flows = [self.hashed(from), self.hashed(back)];
        let homeward = from.answer(from.ingress()).ok_or(NoRoom::TableFull)?;
        let edits = [Edit::new(&from, &to), Edit::new(&back, &homeward)];
        let made = milliseconds(now);
        let mapping = Connection::new(Tracked::Mapping, Tcp::NONE, self.generation(), made);
        self.open(now, &flows, owner, mapping, Some(&edits)).map(|_| ())
    }

    /// Keeps the mapping of an entry's inside end, as the entry goes on.
    pub(super) fn prolong_mapping(&mut self, slot: Slot, time: u32) {
        let entry = self.entry(slot);
        if !entry.is_translated || entry.key.is_mapping() || entry.key.ingress().vni == OUTSIDE {
            return;
        }
        let of = entry.link.get();
        let is_assured = of.is_some_and(|(of, _)| self.connection(of).is_assured());
        let Some(key) = entry.key.mapping() else { return };
        let Some(mapping) = self.mapping(&key, Direction::Forward) else { return };
        self.buckets[mapping.bucket()].used[mapping.way()] = time;
        if is_assured && let Some((connection, _)) = self.entry(mapping).link.get() {
            // It gives way to beginnings no more than what it serves.
            self.connection_mut(connection).is_answered = true;
        }
    }

    /// The entry of a mapping in one direction.
    fn mapping(&self, key: &FlowKey, direction: Direction) -> Option<Slot> {
        let key = self.hashed(*key);
        let slot = self.locate(key.hash, &key.key)?;
        let (connection, found) = self.entry(slot).link.get()?;
        let is_one = self.connection(connection).tracked == Tracked::Mapping;
        (is_one && found == direction).then_some(slot)
    }
}

/// Address and port of whoever sends packets with this key.
fn ends(key: &FlowKey) -> Option<(Ipv4Addr, u16)> {
    match key.addresses() {
        (IpAddr::V4(address), _) => Some((address, key.source_port())),
        _ => None,
    }
}
