// SPDX-License-Identifier: Apache-2.0
#![allow(clippy::panic, reason = "a test that cannot go on says so by panicking")]
//! A VPC with two NICs here and one elsewhere, and frames as a guest makes them.

use plinth_ids::{Epoch, MacAddress, PortId, Vni};
use plinth_switch_api::SwitchConfig;
use plinth_wire::{
    ETHERTYPE_IPV4, ETHERTYPE_IPV6, EthernetHeader, Ipv4Header, Ipv6Header, PROTOCOL_UDP,
    UdpHeader, pseudo_header_ipv4, pseudo_header_ipv6,
};
use std::net::{IpAddr, SocketAddr};

pub(crate) const ROUTER: MacAddress = MacAddress([2, 0, 0, 0, 0, 0xfe]);
pub(crate) const GUEST: MacAddress = MacAddress([2, 0, 0, 0, 0, 1]);
pub(crate) const PORT: PortId = PortId(1);

/// As a person would write it.
pub(crate) fn config() -> SwitchConfig {
    let text = r#"{
      "version": 1, "epoch": 1,
      "underlay": null,
      "ports": [
        {"id": 1, "name": "a", "vni": 7, "mac": "02:00:00:00:00:01", "mtu": 1450,
         "addresses": ["10.0.0.5", "fd00::5"], "socket": "/run/a", "queue_pairs": 1,
         "subnet": "front"},
        {"id": 2, "name": "b", "vni": 7, "mac": "02:00:00:00:00:02", "mtu": 1450,
         "addresses": ["10.0.0.6", "fd00::ff:fe00:2"], "socket": "/run/b", "queue_pairs": 1,
         "subnet": "front"},
        {"id": 3, "name": "c", "vni": 8, "mac": "02:00:00:00:00:03", "mtu": 1450,
         "addresses": ["10.0.0.7"], "socket": "/run/c", "queue_pairs": 1}
      ],
      "remotes": [
        {"vni": 7, "mac": "02:00:00:00:00:09", "addresses": ["10.0.0.9"], "vtep": "172.16.0.2"},
        {"vni": 8, "mac": "02:00:00:00:00:0a", "addresses": ["10.0.0.9"], "vtep": "172.16.0.2"}
      ],
      "vpcs": [
        {"vni": 7, "name": "shop", "router_mac": "02:00:00:00:00:fe",
         "subnets": [{"name": "front",
           "prefixes": [{"prefix": "10.0.0.0/24", "gateway": "10.0.0.1"},
                        {"prefix": "fd00::/64", "gateway": "fd00::1"}]}]}
      ],
      "answers": {
        "dns": [{"vni": 7, "zone": "shop.internal", "upstreams": ["192.0.2.53:53"]}],
        "dhcp": [
          {"vni": 7, "subnet": "front", "lease_seconds": 3600, "ntp": ["10.0.0.2"],
           "routes": [{"destination": "10.9.0.0/16", "gateway": "10.0.0.3"}]}
        ],
        "names": [
          {"vni": 7, "mac": "02:00:00:00:00:01", "name": "web-1"},
          {"vni": 7, "mac": "02:00:00:00:00:09", "name": "db"},
          {"vni": 8, "mac": "02:00:00:00:00:0a", "name": "secret"}
        ]
      }
    }"#;
    let config: SwitchConfig = serde_json::from_str(text).unwrap();
    assert_eq!((config.epoch, config.vpcs[0].vni), (Epoch(1), Vni::new(7).unwrap()));
    config
}

/// A datagram from the guest, to the router's MAC, with a right checksum.
pub(crate) fn frame(mac: MacAddress, from: SocketAddr, to: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(8 + payload.len()).unwrap();
    let udp = UdpHeader::new(from.port(), to.port(), length);
    let mut upper = bytemuck::bytes_of(&udp).to_vec();
    upper.extend_from_slice(payload);
    let mut frame = Vec::new();
    let mut put = |bytes: &[u8]| frame.extend_from_slice(bytes);
    let sum = match (from.ip(), to.ip()) {
        (IpAddr::V4(source), IpAddr::V4(target)) => {
            put(bytemuck::bytes_of(&EthernetHeader::new(ROUTER, mac, ETHERTYPE_IPV4)));
            let ip = Ipv4Header::new(source, target, PROTOCOL_UDP, 20 + length);
            put(bytemuck::bytes_of(&ip));
            pseudo_header_ipv4(source, target, PROTOCOL_UDP, length.into())
        }
        (IpAddr::V6(source), IpAddr::V6(target)) => {
            put(bytemuck::bytes_of(&EthernetHeader::new(ROUTER, mac, ETHERTYPE_IPV6)));
            let ip = Ipv6Header::new(source, target, PROTOCOL_UDP, 64, length);
            put(bytemuck::bytes_of(&ip));
            pseudo_header_ipv6(source, target, PROTOCOL_UDP, length.into())
        }
        _ => panic!("two families"),
    };
    let checksum = sum.with(&upper).checksum();
    upper[6..8].copy_from_slice(&checksum.to_be_bytes());
    frame.extend_from_slice(&upper);
    frame
}

/// An answer's ends and payload, after its lengths and checksums were checked from outside.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) to_mac: MacAddress,
    pub(crate) from: SocketAddr,
    pub(crate) to: SocketAddr,
    pub(crate) payload: Vec<u8>,
}

pub(crate) fn open(frame: &[u8]) -> Opened {
    let (ethernet, packet) = EthernetHeader::parse(frame).unwrap();
    assert_eq!(ethernet.source(), ROUTER);
    let (source, target, upper, pseudo): (IpAddr, IpAddr, &[u8], _) =
        if ethernet.ethertype() == ETHERTYPE_IPV4 {
            let ip = Ipv4Header::parse(packet, packet.len()).unwrap();
            assert!(ip.has_right_checksum(packet));
            assert_eq!(ip.length, packet.len());
            let (source, target) = (ip.header.source(), ip.header.destination());
            let upper = &packet[20..];
            let length = u32::try_from(upper.len()).unwrap();
            let pseudo = pseudo_header_ipv4(source, target, PROTOCOL_UDP, length);
            (source.into(), target.into(), upper, pseudo)
        } else {
            let ip = Ipv6Header::parse(packet, packet.len()).unwrap();
            assert_eq!(ip.length, packet.len());
            let (source, target) = (ip.header.source(), ip.header.destination());
            let upper = &packet[40..];
            let length = u32::try_from(upper.len()).unwrap();
            let pseudo = pseudo_header_ipv6(source, target, PROTOCOL_UDP, length);
            (source.into(), target.into(), upper, pseudo)
        };
    assert_eq!(pseudo.with(upper).fold(), 0xffff, "the UDP checksum is right");
    let (udp, payload) = UdpHeader::parse(upper).unwrap();
    assert_eq!(usize::from(udp.length()), upper.len());
    Opened {
        to_mac: ethernet.destination(),
        from: SocketAddr::new(source, udp.source_port()),
        to: SocketAddr::new(target, udp.destination_port()),
        payload: payload.to_vec(),
    }
}
