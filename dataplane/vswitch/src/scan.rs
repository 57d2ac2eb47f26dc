// SPDX-License-Identifier: Apache-2.0
//! The flow table, read in small steps between two bursts.
//!
//! A step looks at 512 buckets at most and copies what was asked for into room that the asker
//! brought along, so that it allocates nothing and takes some ten microseconds; the text is made
//! on the asker's thread. Between two steps packets are forwarded, so that a flow that comes or
//! goes meanwhile may be missed, and one that moves to its other bucket may be seen twice.

use crate::flow::{Action, Direction, Entry, FlowKey, STATE_NAMES, milliseconds};
use crate::switch::Switch;
use crate::{DropReason, PortIndex, Snapshot};
use plinth_ids::{Moment, PortId, Prefix, Vni};
use plinth_switch_api::{FlowRow, UPLINK};
use std::net::Ipv4Addr;

/// Buckets that one step looks at: 4096 entries.
const STEP: usize = 512;

/// Rows for which room must be left, so that a bucket is never left in its middle.
pub const FLOW_ROOM_MIN: usize = 8;

/// Which flows are wanted. What is `None` is not asked about.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct FlowFilter {
    /// Where the packets come in.
    pub place: Option<PortIndex>,
    pub vni: Option<Vni>,
    /// At either end.
    pub address: Option<Prefix>,
    pub protocol: Option<u8>,
    /// A port number, at either end.
    pub number: Option<u16>,
    /// One of [`FlowFilter::state`].
    pub state: Option<&'static str>,
}

impl FlowFilter {
    /// A state by its name; `None` when there is none of this name.
    pub fn state(name: &str) -> Option<&'static str> {
        STATE_NAMES.into_iter().find(|state| *state == name)
    }

    /// All names of states.
    pub const fn states() -> &'static [&'static str] {
        &STATE_NAMES
    }

    fn wants(&self, key: &FlowKey, state: Option<&'static str>) -> bool {
        let ingress = key.ingress();
        let (source, destination) = key.addresses();
        let has_number = !key.is_icmp() && !key.is_fragment();
        self.place.is_none_or(|place| place.0 == ingress.place)
            && self.vni.is_none_or(|vni| vni == ingress.vni)
            && self.protocol.is_none_or(|protocol| protocol == key.protocol())
            && self.number.is_none_or(|number| {
                has_number && [key.source_port(), key.destination_port()].contains(&number)
            })
            && self
                .address
                .is_none_or(|prefix| prefix.contains(source) || prefix.contains(destination))
            && self.state.is_none_or(|wanted| state == Some(wanted))
    }
}

/// A flow as it was copied out of the table.
#[derive(Clone, Copy, Debug)]
pub struct FlowCopy {
    key: FlowKey,
    port: PortId,
    vni: Vni,
    fate: Fate,
    packets: u64,
    bytes: u64,
    back: Option<(u64, u64)>,
    idle: u32,
    age: u32,
    state: Option<&'static str>,
}

/// What becomes of a flow's packets.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Fate {
    Port(PortId),
    Tunnel(Ipv4Addr),
    /// Out under this address.
    External(Ipv4Addr),
    Drop(DropReason),
    InDoubt,
}

impl FlowCopy {
    /// As it is shown. The port's name is the asker's to fill in.
    pub fn row(&self) -> FlowRow {
        FlowRow {
            port: self.port,
            name: String::new(),
            vni: self.vni,
            key: self.key.to_string(),
            action: match self.fate {
                Fate::Port(port) => port.to_string(),
                Fate::Tunnel(vtep) => format!("vtep {vtep}"),
                Fate::External(address) => format!("external {address}"),
                Fate::Drop(reason) => reason.name().to_owned(),
                Fate::InDoubt => "in-doubt".to_owned(),
            },
            packets: self.packets,
            bytes: self.bytes,
            packets_back: self.back.map(|(packets, _)| packets),
            bytes_back: self.back.map(|(_, bytes)| bytes),
            idle_ms: self.idle.into(),
            age_ms: self.age.into(),
            state: self.state.map(str::to_owned),
        }
    }
}

impl Switch {
    /// One step through the flow table from `from`, which is 0 at first. Adds to `rows` what
    /// `filter` wants, as far as there is room already, and says where to go on.
    pub fn scan_flows(
        &self,
        now: Moment,
        from: u32,
        filter: &FlowFilter,
        rows: &mut Vec<FlowCopy>,
    ) -> Option<u32> {
        let buckets = self.flows.bucket_count();
        let mut at = from as usize;
        let end = at.saturating_add(STEP).min(buckets);
        while at < end && rows.capacity() - rows.len() >= FLOW_ROOM_MIN {
            for (entry, idle) in self.flows.bucket_entries(at, now) {
                rows.extend(self.copy_flow(now, entry, idle, filter));
            }
            at += 1;
        }
        (at < buckets).then(|| u32::try_from(at).expect("buckets are counted in 32 bits"))
    }

    /// A flow, or a connection's first direction with the counters of the other.
    fn copy_flow(
        &self,
        now: Moment,
        entry: &Entry,
        idle: u32,
        filter: &FlowFilter,
    ) -> Option<FlowCopy> {
        if entry.key.is_mapping() {
            return None;
        }
        let link = entry.link.get();
        let connection = link.map(|(index, direction)| (self.flows.connection(index), direction));
        let mut back = None;
        if let Some((connection, direction)) = connection {
            let other = connection.entry(direction.other()).map(|slot| self.flows.entry(slot));
            if direction == Direction::Back && other.is_some() {
                return None;
            }
            back = Some(other.map_or((0, 0), |other| (other.packets, other.bytes)));
        }
        let state = connection.map(|(connection, _)| connection.state_name());
        if !filter.wants(&entry.key, state) {
            return None;
        }
        let ingress = entry.key.ingress();
        let port = match PortIndex(ingress.place) {
            PortIndex::UPLINK => UPLINK,
            // An entry of a port that is gone is nobody's; it goes with time.
            index if self.incarnations[index.get()] != ingress.incarnation => return None,
            index => self.snapshot.port(index)?.id,
        };
        Some(FlowCopy {
            key: entry.key,
            port,
            vni: ingress.vni,
            fate: self.fate(entry),
            packets: entry.packets,
            bytes: entry.bytes,
            back,
            idle,
            age: milliseconds(now).wrapping_sub(entry.made),
            state,
        })
    }

    fn fate(&self, entry: &Entry) -> Fate {
        if !self.flows.is_judged(entry) {
            return Fate::InDoubt;
        }
        match entry.action {
            Action::Deliver(to) => {
                self.snapshot.port(to).map_or(Fate::InDoubt, |port| Fate::Port(port.id))
            }
            Action::Encapsulate { tunnel, .. } => Fate::Tunnel(self.snapshot.tunnel(tunnel).vtep),
            Action::External { address, .. } => {
                self.snapshot.external_address(address).map_or(Fate::InDoubt, Fate::External)
            }
            Action::Drop(reason) => Fate::Drop(reason),
        }
    }
}

impl Snapshot {
    /// The place of a port that a person names by its name or number; the uplink has both too.
    pub fn named_port(&self, text: &str) -> Option<PortIndex> {
        if text == "uplink" || text == "0" {
            return Some(PortIndex::UPLINK);
        }
        let number = text.parse::<u32>().ok();
        let id = number.and_then(|number| self.port_index(PortId(number)));
        id.or_else(|| {
            let mut ports = self.ports();
            ports.find(|(_, port)| port.name.as_str() == text).map(|(index, _)| index)
        })
    }

    /// The VNI of a VPC that a person names by its name or VNI.
    pub fn named_vpc(&self, text: &str) -> Option<Vni> {
        let vpcs = self.settings().map(|config| &config.vpcs[..]).unwrap_or_default();
        let named = vpcs.iter().find(|vpc| vpc.name.as_str() == text).map(|vpc| vpc.vni);
        named.or_else(|| text.parse::<u32>().ok().and_then(Vni::new))
    }
}
