// SPDX-License-Identifier: Apache-2.0
//! The frame that somebody would send: headers as a guest, a VTEP or the outside makes them.

use crate::snapshot::{Destination, Snapshot};
use crate::stages::parse::{Parsed, parse};
use crate::{Offload, Packet, PortIndex};
use plinth_ids::{MacAddress, Vni};
use plinth_wire::checksum::PartialChecksum;
use plinth_wire::{
    ETHERTYPE_IPV4, ETHERTYPE_IPV6, EthernetHeader, ICMP_ECHO_REQUEST, ICMPV6_ECHO_REQUEST,
    IcmpHeader, Ipv4Header, Ipv6Header, PROTOCOL_ICMP, PROTOCOL_ICMPV6, PROTOCOL_TCP, PROTOCOL_UDP,
    TcpHeader, TunnelHeaders, UdpHeader, checksum,
};
use std::net::{IpAddr, Ipv4Addr};

/// Who sends it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Sender {
    Guest(PortIndex),
    /// Another node, through its tunnel.
    Tunnel {
        vni: Vni,
        vtep: Ipv4Addr,
    },
    /// Somebody beyond the underlay, to an external address.
    Outside,
}

/// What it says.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Imagined {
    /// Of a guest, its own if none is given.
    pub source: Option<IpAddr>,
    pub destination: IpAddr,
    pub protocol: u8,
    pub source_port: u16,
    pub destination_port: u16,
    pub tcp_flags: u8,
    pub time_to_live: u8,
    /// Bytes behind the last header.
    pub payload: u16,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ImagineError {
    #[error("the port is not there any more; look for it again")]
    PortGone,
    #[error("the port has no address of the destination's family; say the source")]
    SourceMissing,
    #[error("source and destination are of different families; give two of one")]
    Families,
    #[error("the underlay is not configured, nothing comes from there; ask for a port")]
    NoUnderlay,
    #[error("external addresses are IPv4 only; give two addresses of it")]
    OutsideIpv6,
    #[error("there are too few bytes of the packet; capture it with a longer snap length")]
    Short,
    #[error("a packet of so much payload is too long; at most 9000 bytes")]
    TooLong,
}

/// Of a host that nobody knows.
const STRANGER: MacAddress = MacAddress([2, 0, 0, 0, 0, 1]);
const PAYLOAD_MAX: u16 = 9000;

impl Imagined {
    /// Loads the packet as it would come in.
    ///
    /// # Errors
    /// When nobody could send it.
    pub fn load(&self, snapshot: &Snapshot, sender: Sender) -> Result<Packet, ImagineError> {
        if self.payload > PAYLOAD_MAX {
            return Err(ImagineError::TooLong);
        }
        let (place, frame) = match sender {
            Sender::Guest(index) => (index, self.of_guest(snapshot, index)?),
            Sender::Tunnel { vni, vtep } => {
                (PortIndex::UPLINK, self.of_tunnel(snapshot, vni, vtep)?)
            }
            Sender::Outside => (PortIndex::UPLINK, self.of_outside(snapshot)?),
        };
        let mut packet = Packet::empty();
        let length = u32::try_from(frame.len()).map_err(|_| ImagineError::TooLong)?;
        let head = packet.load(place, length, Offload::default());
        let copied = head.len();
        head.copy_from_slice(&frame[..copied]);
        Ok(packet)
    }

    fn of_guest(&self, snapshot: &Snapshot, index: PortIndex) -> Result<Vec<u8>, ImagineError> {
        let port = snapshot.port(index).ok_or(ImagineError::PortGone)?;
        let is_ipv4 = self.destination.is_ipv4();
        let own = port.addresses.iter().find(|address| address.is_ipv4() == is_ipv4);
        let source = self.source.or(own.copied()).ok_or(ImagineError::SourceMissing)?;
        let to = group_mac(self.destination).unwrap_or_else(|| {
            let vpc = snapshot.vpc(port.vni);
            let is_near = vpc.is_none_or(|vpc| {
                let subnet = vpc.subnet_of(self.destination);
                subnet.is_some() && subnet == port.subnet.or_else(|| vpc.subnet_of(source))
            });
            let near = snapshot.owner(port.vni, self.destination).filter(|_| is_near);
            let near = near.map(|owner| owner.mac);
            near.or(vpc.map(|vpc| vpc.router_mac)).unwrap_or(STRANGER)
        });
        self.frame((port.mac, to), source)
    }

    fn of_tunnel(
        &self,
        snapshot: &Snapshot,
        vni: Vni,
        vtep: Ipv4Addr,
    ) -> Result<Vec<u8>, ImagineError> {
        let uplink = snapshot.uplink.as_ref().ok_or(ImagineError::NoUnderlay)?;
        let source = self.source.ok_or(ImagineError::SourceMissing)?;
        let router = snapshot.vpc(vni).map_or(STRANGER, |vpc| vpc.router_mac);
        // A switch of ours has routed before it sent.
        let from = snapshot.owner(vni, source).map_or(router, |owner| owner.mac);
        let to = match snapshot.owner(vni, self.destination) {
            Some(owner) if matches!(owner.destination, Destination::Local(_)) => owner.mac,
            _ => router,
        };
        let inner = self.frame((from, to), source)?;
        let length = u16::try_from(inner.len()).map_err(|_| ImagineError::TooLong)?;
        let ends = (vtep, uplink.vtep);
        let outer = TunnelHeaders::new((STRANGER, uplink.mac), ends, vni, 50_000, length);
        Ok([bytemuck::bytes_of(&outer), &inner].concat())
    }

    fn of_outside(&self, snapshot: &Snapshot) -> Result<Vec<u8>, ImagineError> {
        let uplink = snapshot.uplink.as_ref().ok_or(ImagineError::NoUnderlay)?;
        let source = self.source.ok_or(ImagineError::SourceMissing)?;
        if source.is_ipv6() || self.destination.is_ipv6() {
            return Err(ImagineError::OutsideIpv6);
        }
        self.frame((STRANGER, uplink.mac), source)
    }

    fn frame(
        &self,
        (from, to): (MacAddress, MacAddress),
        source: IpAddr,
    ) -> Result<Vec<u8>, ImagineError> {
        let mut payload = self.upper();
        payload.resize(payload.len() + usize::from(self.payload), 0);
        let length = u16::try_from(payload.len()).map_err(|_| ImagineError::TooLong)?;
        let (ethertype, ip) = match (source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let total = length + 20;
                let header = Ipv4Header::new(source, destination, self.protocol, total);
                let mut bytes = bytemuck::bytes_of(&header).to_vec();
                bytes[8] = self.time_to_live;
                bytes[10..12].fill(0);
                let sum = checksum::checksum(&bytes);
                bytes[10..12].copy_from_slice(&sum.to_be_bytes());
                (ETHERTYPE_IPV4, bytes)
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let hops = self.time_to_live;
                let header = Ipv6Header::new(source, destination, self.protocol, hops, length);
                (ETHERTYPE_IPV6, bytemuck::bytes_of(&header).to_vec())
            }
            _ => return Err(ImagineError::Families),
        };
        let ethernet = EthernetHeader::new(to, from, ethertype);
        Ok([bytemuck::bytes_of(&ethernet), &ip, &payload].concat())
    }

    /// The header behind IP's. Its checksum is left: the switch does not read it.
    fn upper(&self) -> Vec<u8> {
        let (from, to) = (self.source_port, self.destination_port);
        match self.protocol {
            PROTOCOL_TCP => {
                bytemuck::bytes_of(&TcpHeader::new(from, to, 1, self.tcp_flags)).to_vec()
            }
            PROTOCOL_UDP => {
                let length = self.payload + 8;
                bytemuck::bytes_of(&UdpHeader::new(from, to, length)).to_vec()
            }
            PROTOCOL_ICMP => {
                bytemuck::bytes_of(&IcmpHeader::new(ICMP_ECHO_REQUEST, 0, from, 1)).to_vec()
            }
            PROTOCOL_ICMPV6 => {
                bytemuck::bytes_of(&IcmpHeader::new(ICMPV6_ECHO_REQUEST, 0, from, 1)).to_vec()
            }
            _ => Vec::new(),
        }
    }
}

/// Loads a packet of which the first bytes were seen. A guest's that is longer than its port's MTU
/// left its checksum and its cutting to the switch, which nobody could see.
///
/// # Errors
/// When there are too few bytes of it.
pub fn load_seen(
    snapshot: &Snapshot,
    place: PortIndex,
    seen: &[u8],
    length: u32,
) -> Result<Packet, ImagineError> {
    let mut parsed = Parsed::NOTHING;
    let is_read = parse(seen, length as usize, &mut parsed).is_ok();
    let longest = snapshot.port(place).map_or(u32::MAX, |port| port.frame_length_max);
    let is_cut = is_read && length > longest && parsed.key.protocol() == PROTOCOL_TCP;
    let start = u16::try_from(parsed.upper).map_err(|_| ImagineError::TooLong)?;
    // The checksum of TCP is its seventeenth byte.
    let partial = is_cut.then_some(PartialChecksum { start, offset: 16 });
    let mut packet = Packet::empty();
    let head = packet.load(place, length, Offload { partial, ..Offload::default() });
    if seen.len() < head.len() {
        return Err(ImagineError::Short);
    }
    head.copy_from_slice(&seen[..head.len()]);
    if is_cut {
        // A header of TCP has at most 60 bytes.
        let headers = parsed.upper.saturating_add(60);
        let size = u16::try_from(longest.saturating_sub(headers)).unwrap_or(u16::MAX);
        packet.ask_segmentation(size, !parsed.key.is_ipv4(), false);
    }
    Ok(packet)
}

/// The MAC of a group, which is made of its address.
fn group_mac(address: IpAddr) -> Option<MacAddress> {
    match address {
        IpAddr::V4(address) if address.is_broadcast() => Some(MacAddress::BROADCAST),
        IpAddr::V4(address) if address.is_multicast() => {
            let [_, b, c, d] = address.octets();
            Some(MacAddress([1, 0, 0x5e, b & 0x7f, c, d]))
        }
        IpAddr::V6(address) if address.is_multicast() => {
            let last = address.octets();
            Some(MacAddress([0x33, 0x33, last[12], last[13], last[14], last[15]]))
        }
        _ => None,
    }
}
