// SPDX-License-Identifier: Apache-2.0
//! Ports, addresses and frames that the tests of the path share.

use plinth_ids::{MacAddress, PortId, Vni};
use plinth_ports::Frame;
use plinth_switch_api::{GuestPort as PortConfig, Underlay};
use plinth_wire::checksum::{self, PartialChecksum};
use plinth_wire::{Segmentation, Segments};
use std::net::Ipv4Addr;

pub(crate) fn mac(number: u32) -> MacAddress {
    MacAddress([2, 0, 0, 0, 0, u8::try_from(number).unwrap()])
}

pub(crate) fn address(number: u32) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 0, u8::try_from(number).unwrap())
}

pub(crate) fn port(id: u32, vni: u32) -> PortConfig {
    PortConfig {
        id: PortId(id),
        name: format!("port-{id}").parse().unwrap(),
        vni: Vni::new(vni).unwrap(),
        mac: mac(id),
        addresses: vec![address(id).into()],
        socket: format!("/run/none/{id}.sock").into(),
        mtu: 1450,
        queue_pairs: 1,
        subnet: None,
        security_groups: None,
        allowed: Vec::new(),
        limits: plinth_switch_api::PortLimits::NONE,
    }
}

pub(crate) const VTEP: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 1);
pub(crate) const PEER: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 2);
pub(crate) const VTEP_MAC: MacAddress = MacAddress([2, 0, 0, 0, 1, 1]);
pub(crate) const PEER_MAC: MacAddress = MacAddress([2, 0, 0, 0, 1, 2]);

pub(crate) fn underlay() -> Underlay {
    Underlay {
        device: "net_null0".to_owned(),
        vtep: VTEP,
        prefix_length: 24,
        gateway: None,
        mac: VTEP_MAC,
        mtu: 1500,
    }
}

/// An IPv4 UDP packet with a payload that shows where each byte belongs. The UDP checksum is
/// left partial, as a guest with offload leaves it, or is completed.
pub(crate) fn udp(from: u32, to: u32, payload: usize, is_partial: bool) -> Frame {
    let mut bytes = Vec::new();
    bytes.extend(mac(to).0);
    bytes.extend(mac(from).0);
    bytes.extend([0x08, 0x00]);
    let total = u16::try_from(28 + payload).unwrap();
    let mut ip = vec![0x45, 0];
    ip.extend(total.to_be_bytes());
    ip.extend([0, 1, 0x40, 0, 64, 17, 0, 0]);
    ip.extend(address(from).octets());
    ip.extend(address(to).octets());
    let sum = checksum::checksum(&ip);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    bytes.extend(&ip);
    let length = u16::try_from(8 + payload).unwrap();
    let pseudo = checksum::Sum::new().with(&ip[12..20]).with(&[0, 17]).with(&length.to_be_bytes());
    bytes.extend([0x10, 0, 0x20, 0]);
    bytes.extend(length.to_be_bytes());
    bytes.extend(pseudo.fold().to_be_bytes());
    bytes.extend((0..=250u8).cycle().take(payload));
    let partial = PartialChecksum { start: 34, offset: 6 };
    if is_partial {
        return Frame { bytes, partial: Some(partial), segmentation: None };
    }
    checksum::complete(&mut bytes, partial).unwrap();
    Frame { bytes, partial: None, segmentation: None }
}

/// An IPv4 TCP packet with a payload that shows where each byte belongs, its checksum left partial
/// as a guest leaves it that has its packets cut.
#[allow(dead_code, reason = "not every test of the path sends TCP")]
pub(crate) fn tcp(from: u32, to: u32, payload: usize, flags: u8) -> Frame {
    let mut bytes = [mac(to).0, mac(from).0].concat();
    bytes.extend([0x08, 0x00]);
    let total = u16::try_from(40 + payload).unwrap();
    let mut ip = vec![0x45, 0];
    ip.extend(total.to_be_bytes());
    ip.extend([0xFF, 0xFE, 0x40, 0, 64, 6, 0, 0]);
    ip.extend(address(from).octets());
    ip.extend(address(to).octets());
    let sum = checksum::checksum(&ip);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    bytes.extend(&ip);
    let length = u16::try_from(20 + payload).unwrap();
    let pseudo = checksum::Sum::new().with(&ip[12..20]).with(&[0, 6]).with(&length.to_be_bytes());
    bytes.extend([0x10, 0, 0x20, 0, 0xFF, 0xFF, 0xFF, 0, 0, 0, 0, 9, 5 << 4, flags, 0x20, 0]);
    bytes.extend(pseudo.fold().to_be_bytes());
    bytes.extend([0, 0]);
    bytes.extend((0..=250u8).cycle().take(payload));
    Frame { bytes, partial: Some(PartialChecksum { start: 34, offset: 16 }), segmentation: None }
}

/// What `frame` is cut into, each frame with its sums: what a receiver must see.
#[allow(dead_code, reason = "not every test of the path sends TCP")]
pub(crate) fn cut(frame: &[u8], size: u16) -> Vec<Vec<u8>> {
    let plan = Segmentation {
        size,
        is_ipv6: false,
        has_ecn: false,
        network: 14,
        transport: 34,
        headers: 54,
    };
    let segments = Segments::new(plan, frame.len()).unwrap();
    let one = |nth| {
        let mut bytes = frame[..54].to_vec();
        bytes.extend(&frame[54..][segments.payload(nth)]);
        segments.finish(nth, &mut bytes);
        bytes
    };
    (0..segments.count()).map(one).collect()
}
