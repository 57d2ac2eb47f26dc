// SPDX-License-Identifier: Apache-2.0
//! Nothing allocates while packets are processed.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

mod support;

use plinth_ids::{Epoch, GroupId, MacAddress};
use plinth_vswitch::{BURST_MAX, Packet, PortIndex, Snapshot, Switch, Verdict};
use plinth_wire::TcpHeader;
use std::sync::Arc;
use std::time::Duration;
use support::frames;
use support::*;

/// One packet of every kind: hits, misses, answers, tunnels both ways, drops.
fn every_kind() -> Vec<(bool, Vec<u8>)> {
    let question = plinth_wire::NdSolicitation::frame((mac(1), v6(1)), v6(2)).to_vec();
    let inner = frames::udp((mac(3), mac(1)), (v4(3), v4(1)), (1, 2), b"x");
    let asked = frames::arp_request((mac(3), v4(3)), v4(1));
    let tunneled =
        |inner: &[u8]| frames::vxlan((NEAR_MAC, OUR_MAC), (NEAR_VTEP, OUR_VTEP), vni(100), inner);
    vec![
        (false, frames::udp((mac(1), mac(2)), (v4(1), v4(2)), (1, 2), &[0; 500])),
        (false, frames::udp((mac(1), mac(3)), (v4(1), v4(3)), (1, 2), &[0; 500])),
        (false, frames::udp((mac(1), mac(99)), (v4(1), v4(3)), (1, 2), b"lost")),
        (false, frames::arp_request((mac(1), v4(1)), v4(2))),
        (false, question),
        (false, vec![0; 20]),
        (true, tunneled(&inner)),
        (true, tunneled(&asked)),
        (true, frames::ping((NEAR_MAC, OUR_MAC), (NEAR_VTEP, OUR_VTEP), b"ping")),
        (true, frames::arp_request((NEAR_MAC, NEAR_VTEP), OUR_VTEP)),
    ]
}

#[test]
fn a_burst_allocates_nothing() {
    let rig = Rig::resolved(&two_vpcs());
    let sent = sent_without_allocating(rig, &every_kind());
    assert!(sent > 2000, "only {sent} packets were sent");
}

/// Connections are opened, followed, refused and forgotten; packets are routed, answered and come
/// in pieces.
#[test]
fn a_burst_through_rules_and_routes_allocates_nothing() {
    let router = MacAddress([2, 0xee, 0, 0, 0, 1]);
    let mut config = two_vpcs();
    let text = r#"[{"id":1,"name":"all","rules":[
        {"direction":"outbound","priority":"mid","verdict":"allow","protocol":"any","peer":"any"},
        {"direction":"inbound","priority":"mid","verdict":"allow","protocol":"any","peer":"any"}]}]"#;
    config.security_groups = serde_json::from_str(text).unwrap();
    let text = r#"[{"vni":100,"name":"vpc","router_mac":"02:ee:00:00:00:01","subnets":[
        {"name":"all","prefixes":[{"prefix":"10.0.0.0/24","gateway":"10.0.0.254"}]}]}]"#;
    config.vpcs = serde_json::from_str(text).unwrap();
    for port in &mut config.ports {
        port.security_groups = Some(vec![GroupId(1)]);
    }
    let there = (mac(1), mac(2));
    let ends = (v4(1), v4(2));
    let segment = |flags| {
        let header = TcpHeader::new(9, 80, 100, flags);
        frames::ipv4(there, ends, 6, bytemuck::bytes_of(&header))
    };
    let changed = |mut frame: Vec<u8>, at: usize, bytes: &[u8]| {
        frame[at..at + bytes.len()].copy_from_slice(bytes);
        frame
    };
    let routed = frames::udp((mac(1), router), ends, (1, 2), b"routed");
    let mut kinds = every_kind();
    kinds.extend([
        (false, segment(TcpHeader::SYN)),
        (false, segment(TcpHeader::ACK)),
        (false, changed(frames::udp(there, ends, (1, 2), &[0; 40]), 20, &[0x20, 0])),
        (false, changed(frames::udp(there, ends, (1, 2), &[0; 40]), 20, &[0, 6])),
        (false, frames::unreachable(there, ends, &frames::udp(there, (v4(2), v4(1)), (2, 1), b""))),
        (false, changed(routed.clone(), 22, &[1])),
        (false, routed),
        (false, frames::ping((mac(1), router), (v4(1), v4(254)), b"ping")),
    ]);
    let mut rig = Rig::resolved(&config);
    let until = rig.now + Duration::from_secs(20);
    rig.switch.begin_grace(until);
    let sent = sent_without_allocating(rig, &kinds);
    assert!(sent > 2000, "only {sent} packets were sent");
}

/// Sends 200 bursts of these frames; says how many packets came through.
fn sent_without_allocating(mut rig: Rig, frames: &[(bool, Vec<u8>)]) -> usize {
    let guest = rig.index(1);
    let mut packets = vec![Packet::empty(); BURST_MAX];
    let mut sent = 0;
    let counted = allocation_counter::measure(|| {
        for round in 0..200u16 {
            for (packet, place) in packets.iter_mut().zip(0..) {
                let (is_from_wire, frame) = &frames[place % frames.len()];
                let port = if *is_from_wire { PortIndex::UPLINK } else { guest };
                let length = u32::try_from(frame.len()).unwrap();
                let copy = packet.load(port, length, Default::default());
                let copied = copy.len();
                copy.copy_from_slice(&frame[..copied]);
                // A new flow in every round, so that entries are made and refused as well.
                if !is_from_wire && copied > 40 {
                    let ports = [0, 1, round.to_be_bytes()[0], round.to_be_bytes()[1]];
                    copy[34..38].copy_from_slice(&ports);
                }
            }
            rig.switch.process(rig.now, &mut packets);
            sent += packets
                .iter()
                .filter(|packet| matches!(packet.verdict(), Verdict::Send(_)))
                .count();
            rig.now += Duration::from_millis(500);
            while rig.switch.tick(rig.now).is_some() {}
            rig.switch.deadline();
        }
    });
    assert_eq!(counted.count_total, 0, "{counted:?}");
    sent
}

#[test]
fn a_new_configuration_is_installed_without_allocating() {
    let mut config = two_vpcs();
    let mut switch = Switch::new(limits(), SEED);
    switch.apply(Duration::ZERO, &config).unwrap();
    config.epoch = Epoch(2);
    config.ports.push(port(9, 100, 9));
    config.remotes.push(remote(100, 8, [172, 16, 0, 77].into()));
    let snapshot = Arc::new(Snapshot::compile(&config, &limits(), switch.snapshot()).unwrap());
    let mut before = None;
    let counted = allocation_counter::measure(|| {
        before = Some(switch.install(Duration::from_secs(1), snapshot));
    });
    assert_eq!(counted.count_total, 0, "{counted:?}");
    assert_eq!(switch.epoch(), Some(Epoch(2)));
    assert_eq!(before.unwrap().epoch(), Some(Epoch(1)));
}
