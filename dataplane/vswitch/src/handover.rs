// SPDX-License-Identifier: Apache-2.0
//! The machine's side of a hot restart: its connections go to the next process (ADR-101).
//!
//! A place is a port's here and may be another one's there, so the keys of connections are
//! rewritten by the ports' ids. What is of a port that the other does not have, or of a VPC that
//! the port is not in there, is left out: a connection is never given to somebody else.

use crate::external::{ExternalTables, OUTSIDE};
use crate::flow::{HANDED_RECORD, Handed, Ingress};
use crate::{PortIndex, Snapshot, Switch};
use plinth_ids::{Moment, Name, PortId};
use plinth_switch_api::UPLINK;
use std::collections::BTreeSet;
use std::sync::Arc;

/// Bytes of one connection that is handed over.
pub const HANDED_BYTES: usize = HANDED_RECORD;

/// Which port has a place in the switch that hands over, and how many had it before.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct HandedPlace {
    pub place: u16,
    pub incarnation: u32,
    pub port: PortId,
}

/// Which of a NAT gateway's blocks of ports is a port's.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct HandedSeat {
    pub gateway: Name,
    pub port: PortId,
    pub seat: u32,
}

impl Snapshot {
    /// Who has which ports of gateways. A connection that is handed over keeps its port, which
    /// must go on to be its NIC's.
    pub fn handed_seats(&self) -> Vec<HandedSeat> {
        let seats = self.external.seats.iter();
        seats
            .map(|((gateway, port), &seat)| HandedSeat {
                gateway: gateway.clone(),
                port: *port,
                seat,
            })
            .collect()
    }

    /// Nothing but what another process's NICs had: to compile the first configuration upon. Of
    /// two with one seat the second gets another.
    pub fn seated(seats: &[HandedSeat]) -> Self {
        let mut snapshot = Self::default();
        let mut external = ExternalTables::default();
        let mut taken = BTreeSet::new();
        for HandedSeat { gateway, port, seat } in seats {
            if taken.insert((gateway, *seat)) {
                external.seats.insert((gateway.clone(), *port), *seat);
            }
        }
        snapshot.external = Arc::new(external);
        snapshot
    }
}

/// What became of connections that were taken over.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct TakenConnections {
    pub taken: u64,
    /// Of ports that are not there any more.
    pub strangers: u64,
    /// The table had no room for them.
    pub refused: u64,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum TakeOverError {
    #[error("connections of {length} bytes are not whole; each has {HANDED_RECORD}")]
    Torn { length: usize },
    #[error("connection {number} makes no sense; the two processes are of different versions")]
    Nonsense { number: usize },
}

impl Switch {
    /// What the keys of [`Self::hand_over`] mean. It stays so until the next installation.
    pub fn handed_places(&self) -> Vec<HandedPlace> {
        let uplink = (PortIndex::UPLINK, UPLINK);
        let ports = self.snapshot.ports().map(|(index, port)| (index, port.id));
        std::iter::once(uplink)
            .chain(ports)
            .map(|(index, port)| HandedPlace {
                place: index.0,
                incarnation: self.incarnations[index.get()],
                port,
            })
            .collect()
    }

    /// Writes down connections, of all flows or of those that had a packet since then, and says
    /// where to go on. One step looks at 4096 buckets of the table, and is some tens of
    /// microseconds of work.
    pub fn hand_over(
        &self,
        now: Moment,
        from: usize,
        since: Option<Moment>,
        into: &mut Vec<u8>,
    ) -> Option<usize> {
        self.flows.hand_over(now, from, since, into)
    }

    /// Goes on with connections of another switch, after the configuration was installed. The
    /// same connection may come again, with what has changed.
    ///
    /// # Errors
    /// When the bytes are not what [`Self::hand_over`] writes. Those before are taken.
    pub fn take_over(
        &mut self,
        now: Moment,
        places: &[HandedPlace],
        bytes: &[u8],
    ) -> Result<TakenConnections, TakeOverError> {
        let (records, rest) = bytes.as_chunks::<HANDED_RECORD>();
        if !rest.is_empty() {
            return Err(TakeOverError::Torn { length: bytes.len() });
        }
        let mut told = TakenConnections::default();
        for (number, record) in records.iter().enumerate() {
            let handed = Handed::parse(record).ok_or(TakeOverError::Nonsense { number })?;
            match self.settle_in(places, handed) {
                None => told.strangers += 1,
                Some((handed, owner)) if self.flows.take_over(now, &handed, owner) => {
                    told.taken += 1;
                }
                Some(_) => told.refused += 1,
            }
        }
        Ok(told)
    }

    /// The connection with our places in its keys, and our owner.
    fn settle_in(&self, places: &[HandedPlace], mut handed: Handed) -> Option<(Handed, PortIndex)> {
        let find = |place: u16| places.iter().find(|handed| handed.place == place);
        let ours = |id: PortId| {
            if id == UPLINK { Some(PortIndex::UPLINK) } else { self.snapshot.port_index(id) }
        };
        for key in &mut handed.keys {
            let there = key.ingress();
            let found = find(there.place).filter(|found| found.incarnation == there.incarnation)?;
            let here = ours(found.port)?;
            let is_its_vpc = match self.snapshot.port(here) {
                Some(port) => port.vni == there.vni,
                None if there.vni == OUTSIDE => true,
                None => self.snapshot.has_vni(there.vni),
            };
            if !is_its_vpc {
                return None;
            }
            let incarnation = self.incarnations[here.get()];
            key.set_ingress(Ingress { place: here.0, incarnation, vni: there.vni });
        }
        let owner = ours(find(handed.owner)?.port)?;
        Some((handed, owner))
    }
}
