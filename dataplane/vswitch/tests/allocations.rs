// SPDX-License-Identifier: Apache-2.0
//! Nothing allocates while packets are processed.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

mod support;

use plinth_ids::Epoch;
use plinth_vswitch::{BURST_MAX, Packet, PortIndex, Snapshot, Switch, Verdict};
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
    let mut rig = Rig::resolved(&two_vpcs());
    let guest = rig.index(1);
    let frames = every_kind();
    let mut packets = vec![Packet::empty(); BURST_MAX];
    let mut ports = [0; 4];
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
                    ports = [0, 1, round.to_be_bytes()[0], round.to_be_bytes()[1]];
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
    assert!(sent > 2000, "only {sent} packets were sent: {ports:?}");
    assert_eq!(counted.count_total, 0, "{counted:?}");
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
