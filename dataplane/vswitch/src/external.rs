// SPDX-License-Identifier: Apache-2.0
//! The outside as the stages see it: which external address stands for which NIC, and which ports
//! a NIC has at its gateway.
//!
//! Nothing here changes with packets. A gateway gives every NIC that it serves a block of ports of
//! one address (RFC 7422), so that none can use up another's; which port of the block a connection
//! takes is asked of the flow table, where the entry of its answers is the proof that it is taken.
//! So a port is free again when its connection has gone, and there is nothing to give back.

use crate::flow::FlowKey;
use crate::lookup::Lookup;
use crate::meters::Meters;
use crate::neighbors::Asking;
use crate::snapshot::UplinkTables;
use plinth_ids::{MacAddress, Moment, Name, PortId, Vni};
use plinth_switch_api::{
    AddressLimits, Binding, ExternalStatus, Forward, ForwardProtocol, GuestPort, NatGateway,
    PortMapping, Serves, SwitchConfig,
};
use plinth_wire::{ArpPacket, PROTOCOL_TCP, PROTOCOL_UDP};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

/// Ports below are not handed out: they are those of services.
const FIRST_PORT: u16 = 1024;
const PORTS: u32 = 65_536 - FIRST_PORT as u32;

/// The VNI under which packets of the outside stand in keys; no VPC has it.
pub(crate) const OUTSIDE: Vni = Vni::new(0).expect("0 fits 24 bits");

/// One external address.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Known {
    /// Under which it is counted; kept as long as it is configured.
    pub(crate) place: u16,
    /// Among the uplink's next hops.
    pub(crate) next_hop: u16,
    /// `None`: a gateway's.
    bound: Option<Bound>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Bound {
    vni: Vni,
    nic: Ipv4Addr,
    binding: Binding,
}

/// The ports of an address that are one NIC's.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Block {
    pub(crate) address: Ipv4Addr,
    pub(crate) first: u16,
    pub(crate) count: u16,
    pub(crate) mapping: PortMapping,
}

impl Block {
    /// Whether a port is one of the block.
    pub(crate) const fn has(&self, port: u16) -> bool {
        port.wrapping_sub(self.first) < self.count
    }
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Forwarded {
    last: u16,
    vni: Vni,
    nic: Ipv4Addr,
    nic_port: u16,
}

/// As whom a NIC goes out.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Identity {
    /// Under an address of its own.
    Own(Ipv4Addr),
    /// Under a port of a shared one.
    Shared(Block),
}

/// The place of a NIC's block among those of a gateway.
type Seat = (Name, PortId);

#[derive(Debug, Default)]
pub(crate) struct ExternalTables {
    known: Lookup<Ipv4Addr, Known>,
    /// Addresses by place.
    places: Vec<Option<Ipv4Addr>>,
    /// Places that were taken by this configuration.
    pub(crate) added: Vec<u16>,
    /// Translated and carried ones, by the NIC's address.
    own: Lookup<(Vni, Ipv4Addr), Ipv4Addr>,
    shared: Lookup<(Vni, Ipv4Addr), Block>,
    /// By address, protocol and first port.
    forwards: BTreeMap<(Ipv4Addr, u8, u16), Forwarded>,
    pub(crate) seats: BTreeMap<Seat, u32>,
    /// Of those that have one, by place.
    pub(crate) limits: BTreeMap<u16, AddressLimits>,
}

impl ExternalTables {
    /// Upon `previous`, whose places and blocks stay what they were. `next_hop` says where a
    /// line's next hop stands among the uplink's.
    pub(crate) fn new(
        config: &SwitchConfig,
        previous: &Self,
        next_hop: impl Fn(&Name) -> u16,
    ) -> Self {
        let mut tables = Self::default();
        tables.take_places(config, previous, next_hop);
        let external = &config.external;
        tables.limits = external
            .addresses
            .iter()
            .filter(|given| given.limits != AddressLimits::default())
            .filter_map(|given| Some((tables.known(given.address)?.place, given.limits)))
            .collect();
        tables.own = external
            .addresses
            .iter()
            .map(|given| ((given.vni, given.nic), given.address))
            .collect();
        let mut gateways: Vec<&NatGateway> = external.gateways.iter().collect();
        // The narrowest first, as of equal keys the first is kept.
        gateways.sort_by_key(|gateway| match gateway.serves {
            Serves::Nic(_) => 0,
            Serves::Subnet(_) => 1,
            Serves::Vpc => 2,
        });
        let mut shared = Vec::new();
        for gateway in gateways {
            for (port, seat) in seats(config, gateway, &previous.seats) {
                tables.seats.insert((gateway.name.clone(), port.id), seat);
                let Some(block) = block_of(gateway, seat) else { continue };
                let nics = port.addresses.iter().filter_map(|address| match address {
                    IpAddr::V4(address) => Some(*address),
                    IpAddr::V6(_) => None,
                });
                shared.extend(nics.map(|nic| ((gateway.vni, nic), block)));
            }
            for forward in &gateway.forwards {
                let protocol = number_of(forward.protocol);
                let key = (forward.address, protocol, forward.ports.0);
                let Forward { ports: (_, last), nic, nic_port, .. } = *forward;
                tables.forwards.insert(key, Forwarded { last, vni: gateway.vni, nic, nic_port });
            }
        }
        tables.shared = shared.into_iter().collect();
        tables
    }

    fn take_places(
        &mut self,
        config: &SwitchConfig,
        previous: &Self,
        next_hop: impl Fn(&Name) -> u16,
    ) {
        let external = &config.external;
        let bound = external.addresses.iter().map(|given| {
            let bound = Bound { vni: given.vni, nic: given.nic, binding: given.binding };
            (given.address, &given.line, Some(bound))
        });
        let shared = external.gateways.iter().flat_map(|gateway| {
            gateway.addresses.iter().map(|&address| (address, &gateway.line, None))
        });
        let balanced =
            config.balancers.iter().filter_map(|given| match (given.address, &given.line) {
                (IpAddr::V4(address), Some(line)) => Some((address, line, None)),
                _ => None,
            });
        let all: Vec<_> = bound.chain(shared).chain(balanced).collect();
        let wanted: BTreeSet<Ipv4Addr> = all.iter().map(|(address, ..)| *address).collect();
        self.places = previous.places.clone();
        for place in &mut self.places {
            *place = place.filter(|address| wanted.contains(address));
        }
        let mut by_address: BTreeMap<Ipv4Addr, usize> = self
            .places
            .iter()
            .enumerate()
            .filter_map(|(place, address)| Some(((*address)?, place)))
            .collect();
        let mut free = 0;
        for address in wanted {
            if by_address.contains_key(&address) {
                continue;
            }
            while self.places.get(free).is_some_and(Option::is_some) {
                free += 1;
            }
            if free == self.places.len() {
                self.places.push(None);
            }
            self.places[free] = Some(address);
            self.added.push(place_number(free));
            by_address.insert(address, free);
        }
        let known = all.into_iter().map(|(address, line, bound)| {
            let place = place_number(by_address[&address]);
            (address, Known { place, next_hop: next_hop(line), bound })
        });
        self.known = known.collect();
    }

    /// What is known of an address, if it is external and ours.
    #[inline]
    pub(crate) fn known(&self, address: Ipv4Addr) -> Option<Known> {
        self.known.get(&address).copied()
    }

    /// The address at a place.
    pub(crate) fn address_at(&self, place: u16) -> Option<Ipv4Addr> {
        *self.places.get(usize::from(place))?
    }

    pub(crate) fn count(&self) -> u16 {
        place_number(self.places.len())
    }

    /// As whom a packet of this source goes out.
    pub(crate) fn identity(&self, vni: Vni, source: Ipv4Addr) -> Option<Identity> {
        if let Some(known) = self.known(source)
            && let Some(bound) = known.bound
            && bound.binding == Binding::Carried
            && bound.vni == vni
        {
            return Some(Identity::Own(source));
        }
        if let Some(&address) = self.own.get(&(vni, source))
            && self.is_translated(address)
        {
            return Some(Identity::Own(address));
        }
        self.shared.get(&(vni, source)).copied().map(Identity::Shared)
    }

    /// The address of the NIC that carries an address, or the address itself.
    pub(crate) fn carrier(&self, vni: Vni, address: IpAddr) -> IpAddr {
        let IpAddr::V4(carried) = address else { return address };
        let bound = self.known(carried).and_then(|known| known.bound);
        let is_its = |bound: &Bound| bound.binding == Binding::Carried && bound.vni == vni;
        bound.filter(is_its).map_or(address, |bound| bound.nic.into())
    }

    fn is_translated(&self, address: Ipv4Addr) -> bool {
        let bound = self.known(address).and_then(|known| known.bound);
        bound.is_some_and(|bound| bound.binding == Binding::Translated)
    }

    /// To which NIC a packet goes that nothing inside has asked for: its VPC, the NIC's address,
    /// and what the packet's destination becomes.
    pub(crate) fn inward(&self, key: &FlowKey) -> Option<(Vni, Ipv4Addr, FlowKey)> {
        let (source, destination) = key.addresses();
        let (IpAddr::V4(source), IpAddr::V4(destination)) = (source, destination) else {
            return None;
        };
        let mut to = *key;
        let mut set = |address: Ipv4Addr| to.set_ipv4(join(source, address));
        if let Some(Bound { vni, nic, binding }) = self.known(destination)?.bound {
            if binding == Binding::Translated {
                set(nic);
            }
            return Some((vni, nic, to));
        }
        if !matches!(key.protocol(), PROTOCOL_TCP | PROTOCOL_UDP) {
            return None;
        }
        let port = key.destination_port();
        let forward = self.forward(destination, key.protocol(), port)?;
        set(forward.1.nic);
        to.set_ports(key.source_port(), forward.1.nic_port + (port - forward.0));
        Some((forward.1.vni, forward.1.nic, to))
    }

    fn forward(&self, address: Ipv4Addr, protocol: u8, port: u16) -> Option<(u16, &Forwarded)> {
        let range = (address, protocol, 0)..=(address, protocol, port);
        let (&(_, _, first), forward) = self.forwards.range(range).next_back()?;
        (port <= forward.last).then_some((first, forward))
    }

    /// Whether a port leads inward, so that nobody may go out under it.
    pub(crate) fn is_forwarded(&self, address: Ipv4Addr, protocol: u8, port: u16) -> bool {
        self.forward(address, protocol, port).is_some()
    }

    /// The block of a NIC whose ports stand for addresses and ports inside, if the packets of a
    /// key are mapped to it.
    pub(crate) fn mapped(&self, key: &FlowKey) -> Option<Block> {
        let (IpAddr::V4(source), _) = key.addresses() else { return None };
        let Some(Identity::Shared(block)) = self.identity(key.ingress().vni, source) else {
            return None;
        };
        let is_mapped = block.mapping != PortMapping::PerConnection && key.mapping().is_some();
        is_mapped.then_some(block)
    }

    /// Whether everybody outside may speak to a NIC under the address and port that a packet is
    /// for, if there is a mapping.
    pub(crate) fn is_open(
        &self,
        (vni, nic): (Vni, Ipv4Addr),
        (address, key): (Ipv4Addr, &FlowKey),
    ) -> bool {
        let Some(Identity::Shared(block)) = self.identity(vni, nic) else { return false };
        block.mapping == PortMapping::Open
            && key.mapping().is_some()
            && block.address == address
            && block.has(key.destination_port())
    }

    /// Whether a connection that was translated so may still be: `from` is the key of its first
    /// packet as it came in, and `to` as it went. `mapped` says where that would go by a mapping.
    pub(crate) fn holds(
        &self,
        from: &FlowKey,
        to: &FlowKey,
        vni: Vni,
        mapped: impl FnOnce() -> Option<(Vni, Ipv4Addr, FlowKey)>,
    ) -> bool {
        let (IpAddr::V4(source), IpAddr::V4(destination)) = from.addresses() else { return false };
        let (IpAddr::V4(new_source), IpAddr::V4(new_destination)) = to.addresses() else {
            return false;
        };
        let begun = from.ingress().vni;
        let is_source_right = if begun == OUTSIDE {
            new_source == source
        } else {
            match self.identity(begun, source) {
                Some(Identity::Own(address)) => address == new_source,
                Some(Identity::Shared(block)) => {
                    let has_port =
                        matches!(from.protocol(), PROTOCOL_TCP | PROTOCOL_UDP) || from.is_icmp();
                    block.address == new_source && (!has_port || block.has(to.source_port()))
                }
                None => false,
            }
        };
        let is_destination_right = if vni == OUTSIDE {
            new_destination == destination && self.known(destination).is_none()
        } else {
            self.inward(from).or_else(mapped).is_some_and(|(found, _, inward)| {
                found == vni
                    && inward.addresses().1 == to.addresses().1
                    && inward.destination_port() == to.destination_port()
            })
        };
        is_source_right && is_destination_right
    }
}

/// Both addresses, as they stand in a key.
pub(crate) fn join(source: Ipv4Addr, destination: Ipv4Addr) -> [u8; 8] {
    let ([a, b, c, d], [e, f, g, h]) = (source.octets(), destination.octets());
    [a, b, c, d, e, f, g, h]
}

fn place_number(place: usize) -> u16 {
    u16::try_from(place).expect("external addresses are limited to 65535")
}

const fn number_of(protocol: ForwardProtocol) -> u8 {
    match protocol {
        ForwardProtocol::Tcp => PROTOCOL_TCP,
        ForwardProtocol::Udp => PROTOCOL_UDP,
    }
}

/// How many NICs a gateway has ports for.
pub(crate) fn seats_of(gateway: &NatGateway) -> u32 {
    let addresses = u32::try_from(gateway.addresses.len()).unwrap_or(u32::MAX);
    addresses.saturating_mul(PORTS / u32::from(gateway.ports_per_nic).max(1))
}

fn block_of(gateway: &NatGateway, seat: u32) -> Option<Block> {
    let per_address = (PORTS / u32::from(gateway.ports_per_nic)).max(1);
    let address = *gateway.addresses.get((seat / per_address) as usize)?;
    let offset = u16::try_from(seat % per_address * u32::from(gateway.ports_per_nic)).ok()?;
    Some(Block {
        address,
        first: FIRST_PORT + offset,
        count: gateway.ports_per_nic,
        mapping: gateway.mapping,
    })
}

/// Ports here that a gateway serves.
pub(crate) fn served<'a>(
    config: &'a SwitchConfig,
    gateway: &'a NatGateway,
) -> impl Iterator<Item = &'a GuestPort> {
    config.ports.iter().filter(|port| {
        port.vni == gateway.vni
            && match &gateway.serves {
                Serves::Vpc => true,
                Serves::Subnet(name) => port.subnet.as_ref() == Some(name),
                Serves::Nic(nic) => port.addresses.contains(&IpAddr::V4(*nic)),
            }
    })
}

/// Every port with its seat: the one that it had, or the lowest that is free.
fn seats<'a>(
    config: &'a SwitchConfig,
    gateway: &'a NatGateway,
    before: &BTreeMap<Seat, u32>,
) -> Vec<(&'a GuestPort, u32)> {
    let count = seats_of(gateway);
    let mut ports: Vec<&GuestPort> = served(config, gateway).collect();
    ports.sort_by_key(|port| port.id);
    let had = |port: &GuestPort| before.get(&(gateway.name.clone(), port.id)).copied();
    let kept = |port: &GuestPort| had(port).filter(|&seat| seat < count);
    let mut taken: BTreeSet<u32> = ports.iter().filter_map(|port| kept(port)).collect();
    let mut free = 0;
    let mut place = |port: &'a GuestPort| {
        let seat = kept(port).unwrap_or_else(|| {
            while !taken.insert(free) {
                free += 1;
            }
            free
        });
        (port, seat)
    };
    ports.into_iter().map(&mut place).collect()
}

/// Of one address.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    packets_in: u64,
    bytes_in: u64,
    packets_out: u64,
    bytes_out: u64,
    dropped_in: u64,
    dropped_out: u64,
}

/// Numbers of external addresses, which one worker writes.
#[derive(Debug)]
pub(crate) struct ExternalCounters {
    counts: Box<[Counts]>,
    pub(crate) meters: Meters,
    /// How often each is still to be announced.
    announcements: Box<[u8]>,
    /// Where the pass over them goes on, and when the next one begins.
    cursor: usize,
    due: Option<Moment>,
}

/// As the VTEP is announced (RFC 5227, section 1.1).
const ANNOUNCEMENTS: u8 = 2;
const ANNOUNCE_AGAIN: Duration = Duration::from_secs(2);

impl ExternalCounters {
    pub(crate) fn new(limit: u16) -> Self {
        let count = usize::from(limit);
        let (counts, announcements) =
            (vec![Counts::default(); count].into(), vec![0; count].into());
        Self { counts, meters: Meters::new(limit), announcements, cursor: 0, due: None }
    }

    /// Takes notice of addresses that came.
    pub(crate) fn install(&mut self, now: Moment, tables: &ExternalTables) {
        self.meters.install(now, tables);
        let added = &tables.added;
        for &place in added {
            self.counts[usize::from(place)] = Counts::default();
            self.announcements[usize::from(place)] = ANNOUNCEMENTS;
        }
        if !added.is_empty() {
            (self.cursor, self.due) = (0, Some(now));
        }
    }

    /// Tells the underlay where an address is from now on, if one is to be announced.
    pub(crate) fn tick(
        &mut self,
        now: Moment,
        tables: &ExternalTables,
        uplink: &UplinkTables,
    ) -> Option<Asking> {
        if self.due.is_none_or(|due| now < due) {
            return None;
        }
        while let Some(left) = self.announcements.get_mut(self.cursor) {
            let place = place_number(self.cursor);
            self.cursor += 1;
            if *left > 0 {
                *left -= 1;
                let Some(address) = tables.address_at(place) else { continue };
                let message = ArpPacket::request((uplink.mac, address), address);
                return Some(Asking { message, destination: MacAddress::BROADCAST });
            }
        }
        self.cursor = 0;
        let is_over = self.announcements.iter().all(|&left| left == 0);
        self.due = (!is_over).then_some(now + ANNOUNCE_AGAIN);
        None
    }

    pub(crate) const fn deadline(&self) -> Option<Moment> {
        self.due
    }

    /// Counts a packet from outside, and answers whether the address's limit lets it in.
    #[inline]
    pub(crate) fn count_in(&mut self, now: Moment, place: u16, length: u32) -> bool {
        let counts = &mut self.counts[usize::from(place)];
        counts.packets_in += 1;
        counts.bytes_in += u64::from(length);
        let may_pass = self.meters.admit_in(now, place, length);
        counts.dropped_in += u64::from(!may_pass);
        may_pass
    }

    /// The same for one that is to leave; one that may not is no packet to the outside.
    #[inline]
    pub(crate) fn count_out(&mut self, now: Moment, place: u16, length: u32) -> bool {
        let counts = &mut self.counts[usize::from(place)];
        let may_pass = self.meters.admit_out(now, place, length);
        if may_pass {
            counts.packets_out += 1;
            counts.bytes_out += u64::from(length);
        } else {
            counts.dropped_out += 1;
        }
        may_pass
    }

    pub(crate) fn status(&self, tables: &ExternalTables) -> Vec<ExternalStatus> {
        let places = (0..tables.count())
            .filter_map(|place| Some((tables.address_at(place)?, self.counts[usize::from(place)])));
        let list = places.map(|(address, counts)| ExternalStatus {
            address,
            packets_in: counts.packets_in,
            bytes_in: counts.bytes_in,
            packets_out: counts.packets_out,
            bytes_out: counts.bytes_out,
            dropped_in: counts.dropped_in,
            dropped_out: counts.dropped_out,
        });
        list.collect()
    }
}
