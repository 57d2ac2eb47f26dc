// SPDX-License-Identifier: Apache-2.0
//! Stories of guests that ask for their metadata: what is handed on, and what never leaves.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]
#![allow(dead_code, reason = "other tests use the rest of the support")]

mod support;

use plinth_ids::{Epoch, MacAddress, Name};
use plinth_switch_api::{
    METADATA_IPV4, METADATA_IPV6, NextHop, Route, Subnet, SubnetPrefix, SwitchConfig, Vpc,
};
use plinth_vswitch::{DropReason, PortIndex};
use plinth_wire::{NdAdvertisement, NdSolicitation, PROTOCOL_TCP, TcpHeader, checksum};
use std::net::Ipv4Addr;
use support::frames::{self, Segment};
use support::*;

const ROUTER: MacAddress = MacAddress([2, 0xff, 0, 0, 0, 1]);

/// Guests of VPC 100 have metadata and those of VPC 200 have not; in both, NIC 2 or 4 is the way
/// to everywhere else.
fn served() -> SwitchConfig {
    let mut config = two_vpcs();
    for segment in [100, 200] {
        let prefix = |prefix: &str, gateway: &str| SubnetPrefix {
            prefix: prefix.parse().unwrap(),
            gateway: gateway.parse().unwrap(),
        };
        let prefixes = vec![prefix("10.0.0.0/24", "10.0.0.254"), prefix("fd00::/64", "fd00::fe")];
        let name: Name = "front".parse().unwrap();
        let subnets = vec![Subnet { name: name.clone(), prefixes }];
        let route = |destination: &str, hop| Route {
            destination: destination.parse().unwrap(),
            next_hop: NextHop::Address(hop),
        };
        let routes = vec![route("0.0.0.0/0", v4(2).into()), route("::/0", v6(2).into())];
        config.vpcs.push(Vpc { vni: vni(segment), name, router_mac: ROUTER, subnets, routes });
    }
    for port in &mut config.ports {
        port.subnet = Some("front".parse().unwrap());
    }
    for remote in &mut config.remotes {
        remote.subnet = Some("front".parse().unwrap());
    }
    config.answers.metadata = vec![vni(100)];
    config
}

fn segment(number: u8, source: Ipv4Addr, port: u16) -> Vec<u8> {
    let syn =
        Segment { flags: TcpHeader::SYN, sequence: 1, acknowledgment: 0, window: 8192, length: 0 };
    frames::tcp((mac(number), ROUTER), (source, METADATA_IPV4), (40_000, port), syn)
}

fn segment6() -> Vec<u8> {
    let header = TcpHeader::new(40_000, 80, 1, TcpHeader::SYN);
    let ends = (v6(1), METADATA_IPV6);
    frames::ipv6((mac(1), ROUTER), ends, PROTOCOL_TCP, bytemuck::bytes_of(&header))
}

#[test]
fn a_request_for_metadata_is_handed_on_and_goes_nowhere_else() {
    let mut rig = Rig::resolved(&served());
    assert_eq!(rig.send(rig.index(1), segment(1, v4(1), 80)), Outcome::Asked);
    assert_eq!(rig.send(rig.index(1), segment6()), Outcome::Asked);
    // Whatever else is sent there ends at the router, default route or not.
    let unserved = Outcome::Dropped(DropReason::RouterUnserved);
    assert_eq!(rig.send(rig.index(1), segment(1, v4(1), 443)), unserved);
    let datagram = frames::udp((mac(1), ROUTER), (v4(1), METADATA_IPV4), (9, 80), &[0; 9]);
    assert_eq!(rig.send(rig.index(1), datagram), unserved);
    let mut piece = segment(1, v4(1), 80);
    piece[20] = 0x20;
    piece[24..26].fill(0);
    let sum = checksum::checksum(&piece[14..34]);
    piece[24..26].copy_from_slice(&sum.to_be_bytes());
    assert_eq!(rig.send(rig.index(1), piece), unserved);
    assert_eq!(rig.switch.flow_count(), 0, "each is judged by itself");
    rig.check_books(4);
}

#[test]
fn whoever_asks_for_metadata_asks_with_its_own_mac_and_address() {
    let mut rig = Rig::resolved(&served());
    let address = Outcome::Dropped(DropReason::SourceAddressSpoofed);
    assert_eq!(rig.send(rig.index(2), segment(2, v4(1), 80)), address);
    let mac = Outcome::Dropped(DropReason::SourceMacSpoofed);
    assert_eq!(rig.send(rig.index(2), segment(1, v4(1), 80)), mac);
    let nobody = segment(2, Ipv4Addr::UNSPECIFIED, 80);
    assert_eq!(rig.send(rig.index(2), nobody), address);
}

#[test]
fn without_metadata_its_addresses_are_like_any() {
    let mut rig = Rig::resolved(&served());
    let without = |epoch| {
        let mut config = served();
        config.answers.metadata.clear();
        SwitchConfig { epoch: Epoch(epoch), ..config }
    };
    // An address of one link is never routed; that of IPv6 goes by the route to everywhere.
    let unknown = Outcome::Dropped(DropReason::RouteUnknown);
    assert_eq!(rig.send(rig.index(3), segment(1, v4(1), 80)), unknown);
    assert_eq!(rig.send(rig.index(3), segment6()).sent().0, rig.index(4));
    rig.switch.apply(rig.now, &without(2)).unwrap();
    assert_eq!(rig.send(rig.index(1), segment(1, v4(1), 80)), unknown);
    assert_eq!(rig.send(rig.index(1), segment6()).sent().0, rig.index(2));
    // And those who went elsewhere are handed on from now on.
    rig.switch.apply(rig.now, &SwitchConfig { epoch: Epoch(3), ..served() }).unwrap();
    assert_eq!(rig.send(rig.index(1), segment6()), Outcome::Asked);
}

#[test]
fn a_guest_that_takes_the_addresses_for_its_links_is_told_of_the_router() {
    let mut rig = Rig::resolved(&served());
    let question = || frames::arp_request((mac(1), v4(1)), METADATA_IPV4);
    let answer = frames::arp_reply((ROUTER, METADATA_IPV4), (mac(1), v4(1)));
    assert_eq!(rig.send(rig.index(1), question()).sent(), (rig.index(1), answer));
    let unknown = Outcome::Dropped(DropReason::ArpTargetUnknown);
    assert_eq!(rig.send(rig.index(3), question()), unknown);
    let question = || NdSolicitation::frame((mac(1), v6(1)), METADATA_IPV6).to_vec();
    let (target, asker_address) = (METADATA_IPV6, v6(1));
    let answer =
        NdAdvertisement { owner: ROUTER, target, asker: mac(1), asker_address, is_router: false };
    let said = rig.send(rig.index(1), question()).sent();
    assert_eq!(said, (rig.index(1), answer.frame().to_vec()));
    let unknown = Outcome::Dropped(DropReason::NdTargetUnknown);
    assert_eq!(rig.send(rig.index(3), question()), unknown);
}

#[test]
fn nobody_asks_through_a_tunnel() {
    let mut rig = Rig::resolved(&served());
    let mut inner = segment(3, v4(3), 80);
    for to in [ROUTER, mac(1)] {
        inner[..6].copy_from_slice(&to.0);
        let outer = frames::vxlan((NEAR_MAC, OUR_MAC), (NEAR_VTEP, OUR_VTEP), vni(100), &inner);
        let outcome = rig.send(PortIndex::UPLINK, outer);
        assert!(!matches!(outcome, Outcome::Asked), "{outcome:?}");
    }
}
