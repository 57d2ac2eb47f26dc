// SPDX-License-Identifier: Apache-2.0
//! What tells one flow from another: 64 bytes, one cache line, compared exactly.
//!
//! The key holds everything that a decision depends on and that may differ between packets: where
//! the packet came in, both MACs, both addresses, the protocol and the ports; from the wire also
//! the VNI and the sending VTEP. Two packets with one key get one decision, so anti-spoofing and
//! isolation hold for a hit as they held for the miss that made the entry.

use bytemuck::{Pod, Zeroable};
use plinth_ids::{MacAddress, Vni};
use plinth_wire::Be16;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The key as words, as it is hashed and compared.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Pod, Zeroable)]
#[repr(transparent)]
pub(crate) struct FlowKey {
    pub(crate) words: [u64; 8],
}

/// The key as fields, as it is built and listed.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Pod, Zeroable)]
#[repr(C, align(8))]
pub(crate) struct KeyFields {
    /// IPv4 in the first four bytes.
    source_address: [u8; 16],
    destination_address: [u8; 16],
    source_mac: [u8; 6],
    destination_mac: [u8; 6],
    source_port: Be16,
    destination_port: Be16,
    /// Zero for a guest's packet: the port says it.
    vni: [u8; 4],
    /// Zero for a guest's packet.
    vtep: [u8; 4],
    port: Be16,
    kind: u8,
    protocol: u8,
    padding: [u8; 4],
}

const _: () = assert!(size_of::<FlowKey>() == 64, "a key is one cache line");
const _: () = assert!(size_of::<KeyFields>() == size_of::<FlowKey>());
const _: () = assert!(align_of::<KeyFields>() == align_of::<FlowKey>());

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub(crate) enum FlowKind {
    Ipv4 = 4,
    Ipv6 = 6,
    /// Pieces of packets, which have no ports to go by.
    Ipv4Fragment = 0x84,
    Ipv6Fragment = 0x86,
}

impl KeyFields {
    pub(crate) fn new(kind: FlowKind, macs: (MacAddress, MacAddress), protocol: u8) -> Self {
        Self {
            source_mac: macs.0.0,
            destination_mac: macs.1.0,
            kind: kind as u8,
            protocol,
            ..Self::zeroed()
        }
    }

    pub(crate) fn set_ipv4(&mut self, source: Ipv4Addr, destination: Ipv4Addr) {
        self.source_address[..4].copy_from_slice(&source.octets());
        self.destination_address[..4].copy_from_slice(&destination.octets());
    }

    pub(crate) fn set_ipv6(&mut self, source: Ipv6Addr, destination: Ipv6Addr) {
        self.source_address = source.octets();
        self.destination_address = destination.octets();
    }

    pub(crate) const fn set_ports(&mut self, source: u16, destination: u16) {
        self.source_port = Be16::new(source);
        self.destination_port = Be16::new(destination);
    }

    /// Where the packet came in, and through which tunnel if from the wire.
    pub(crate) fn set_ingress(&mut self, port: u16, tunnel: Option<(Vni, Ipv4Addr)>) {
        self.port = Be16::new(port);
        if let Some((vni, vtep)) = tunnel {
            self.vni = vni.get().to_be_bytes();
            self.vtep = vtep.octets();
        }
    }

    pub(crate) fn key(&self) -> &FlowKey {
        bytemuck::cast_ref(self)
    }

    pub(crate) fn of(key: &FlowKey) -> Self {
        bytemuck::cast(*key)
    }

    pub(crate) const fn destination_port(&self) -> u16 {
        self.destination_port.get()
    }

    pub(crate) const fn port(&self) -> u16 {
        self.port.get()
    }

    /// Of a packet from the wire.
    pub(crate) fn vni(&self) -> Option<Vni> {
        Vni::new(u32::from_be_bytes(self.vni)).filter(|vni| vni.get() != 0)
    }

    pub(crate) fn addresses(&self) -> (IpAddr, IpAddr) {
        let is_ipv4 = self.kind & 0x7f == FlowKind::Ipv4 as u8;
        let address = |octets: [u8; 16]| match octets {
            [a, b, c, d, ..] if is_ipv4 => IpAddr::V4(Ipv4Addr::new(a, b, c, d)),
            octets => IpAddr::V6(Ipv6Addr::from_octets(octets)),
        };
        (address(self.source_address), address(self.destination_address))
    }

    fn is_fragment(&self) -> bool {
        self.kind & 0x80 != 0
    }
}

/// As `udp 10.0.0.1:53 -> 10.0.0.2:4000`.
impl fmt::Display for KeyFields {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (source, destination) = self.addresses();
        let (from, to) = (self.source_port.get(), self.destination_port.get());
        let named = match self.protocol {
            plinth_wire::PROTOCOL_TCP => Some("tcp"),
            plinth_wire::PROTOCOL_UDP => Some("udp"),
            _ => None,
        };
        match self.protocol {
            protocol if self.is_fragment() => {
                write!(f, "fragments of protocol {protocol} {source} -> {destination}")
            }
            plinth_wire::PROTOCOL_ICMP | plinth_wire::PROTOCOL_ICMPV6 => {
                let [kind, code] = from.to_be_bytes();
                let name = if source.is_ipv4() { "icmp" } else { "icmpv6" };
                write!(f, "{name} type {kind} code {code} {source} -> {destination}")
            }
            protocol => match named {
                Some(name) if source.is_ipv4() => {
                    write!(f, "{name} {source}:{from} -> {destination}:{to}")
                }
                Some(name) => write!(f, "{name} [{source}]:{from} -> [{destination}]:{to}"),
                None => write!(f, "protocol {protocol} {source} -> {destination}"),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MACS: (MacAddress, MacAddress) =
        (MacAddress([2, 0, 0, 0, 0, 1]), MacAddress([2, 0, 0, 0, 0, 2]));

    #[test]
    fn a_key_is_listed_as_people_write_flows() {
        let mut fields = KeyFields::new(FlowKind::Ipv4, MACS, 17);
        fields.set_ipv4(Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2));
        fields.set_ports(53, 4000);
        assert_eq!(fields.to_string(), "udp 10.0.0.1:53 -> 10.0.0.2:4000");
        let mut fields = KeyFields::new(FlowKind::Ipv6, MACS, 6);
        fields.set_ipv6(Ipv6Addr::LOCALHOST, Ipv6Addr::UNSPECIFIED);
        fields.set_ports(1, 2);
        assert_eq!(fields.to_string(), "tcp [::1]:1 -> [::]:2");
        let mut fields = KeyFields::new(FlowKind::Ipv4, MACS, 1);
        fields.set_ports(0x0800, 0);
        assert_eq!(fields.to_string(), "icmp type 8 code 0 0.0.0.0 -> 0.0.0.0");
        let fields = KeyFields::new(FlowKind::Ipv4Fragment, MACS, 17);
        assert_eq!(fields.to_string(), "fragments of protocol 17 0.0.0.0 -> 0.0.0.0");
        let fields = KeyFields::new(FlowKind::Ipv4, MACS, 47);
        assert_eq!(fields.to_string(), "protocol 47 0.0.0.0 -> 0.0.0.0");
    }

    #[test]
    fn every_field_makes_another_key() {
        let base = KeyFields::new(FlowKind::Ipv4, MACS, 17);
        let mut others = vec![
            KeyFields::new(FlowKind::Ipv6, MACS, 17),
            KeyFields::new(FlowKind::Ipv4Fragment, MACS, 17),
            KeyFields::new(FlowKind::Ipv4, (MACS.1, MACS.1), 17),
            KeyFields::new(FlowKind::Ipv4, (MACS.0, MACS.0), 17),
            KeyFields::new(FlowKind::Ipv4, MACS, 6),
        ];
        let mut with = |change: &dyn Fn(&mut KeyFields)| {
            let mut fields = base;
            change(&mut fields);
            others.push(fields);
        };
        with(&|fields| fields.set_ports(1, 0));
        with(&|fields| fields.set_ports(0, 1));
        with(&|fields| fields.set_ipv4(Ipv4Addr::BROADCAST, Ipv4Addr::UNSPECIFIED));
        with(&|fields| fields.set_ipv4(Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST));
        with(&|fields| fields.set_ingress(1, None));
        with(&|fields| fields.set_ingress(0, Some((Vni::new(1).unwrap(), [0; 4].into()))));
        with(&|fields| fields.set_ingress(0, Some((Vni::new(0).unwrap(), [1; 4].into()))));
        for (place, other) in others.iter().enumerate() {
            assert_ne!(other.key(), base.key());
            assert!(!others[..place].contains(other), "{other:?} twice");
            assert_eq!(KeyFields::of(other.key()), *other);
        }
    }
}
