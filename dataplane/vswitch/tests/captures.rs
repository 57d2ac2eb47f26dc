// SPDX-License-Identifier: Apache-2.0
//! In the place of a Linux host: what its peer, Linux's own vxlan device, sent it is sent to the
//! switch, which must answer and deliver as that host did.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

mod support;

use plinth_ids::{Epoch, MacAddress};
use plinth_switch_api::{GuestPort, Remote, SwitchConfig};
use plinth_vswitch::{DropReason, Offload, PortIndex};
use plinth_wire::checksum;
use std::net::{IpAddr, Ipv4Addr};
use support::*;

const CAPTURES: &str = include_str!("../../wire/tests/captures/linux-vxlan.txt");
const UPLINK: PortIndex = PortIndex::UPLINK;
const LINUX_MAC: MacAddress = MacAddress([2, 0xaa, 0, 0, 0, 1]);
const LINUX_VTEP: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 1);

fn frame(name: &str) -> Vec<u8> {
    let lines = CAPTURES.lines().filter_map(|line| line.split_once(' '));
    let text = lines.filter(|(found, _)| *found == name).map(|(_, text)| text).next().unwrap();
    let digits = text.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).unwrap());
    digits.map(|pair| u8::from_str_radix(pair, 16).unwrap()).collect()
}

/// The capture's second host as a switch with one guest, its first as the remote.
fn config() -> SwitchConfig {
    let addresses = |number| -> Vec<IpAddr> { vec![v4(number).into(), v6(number).into()] };
    let mut config = two_vpcs();
    config.epoch = Epoch(1);
    let underlay = config.underlay.as_mut().unwrap();
    underlay.vtep = Ipv4Addr::new(172, 16, 0, 2);
    underlay.mac = MacAddress([2, 0xaa, 0, 0, 0, 2]);
    config.ports = vec![GuestPort { addresses: addresses(2), ..port(1, 100, 2) }];
    config.remotes = vec![Remote { addresses: addresses(1), ..remote(100, 1, LINUX_VTEP) }];
    config
}

fn rig() -> Rig {
    let config = config();
    let underlay = config.underlay.as_ref().unwrap();
    let mut rig = Rig::new(&config);
    let known = frames::arp_reply((LINUX_MAC, LINUX_VTEP), (underlay.mac, underlay.vtep));
    assert_eq!(rig.once(UPLINK, known), Outcome::Absorbed);
    rig
}

/// Offers a capture as a driver does: with the outer checksum looked at.
fn offer(rig: &mut Rig, name: &str) -> Outcome {
    let frame = frame(name);
    let offload = Offload { partial: None, udp: checksum::rx_checksum(&frame) };
    rig.offer(&Incoming { port: UPLINK, frame, offload })
}

#[test]
fn linux_is_answered_as_linux_answered_it() {
    let mut rig = rig();
    for (question, answer) in
        [("arp-request", "arp-reply"), ("nd-solicitation", "nd-advertisement")]
    {
        let (port, sent) = offer(&mut rig, question).sent();
        let expected = frame(answer);
        assert_eq!(port, UPLINK);
        assert_eq!(sent[50..], expected[50..], "{answer}: the inner frame");
        assert_eq!(sent[..14], expected[..14], "{answer}: the outer Ethernet header");
        assert_eq!(sent[16..18], expected[16..18], "{answer}: the outer length");
        assert_eq!(sent[26..34], expected[26..34], "{answer}: the VTEPs");
        assert_eq!(sent[36..40], expected[36..40], "{answer}: UDP port and length");
        assert_eq!(sent[42..50], expected[42..50], "{answer}: the VXLAN header");
    }
}

#[test]
fn what_linux_sends_to_a_guest_arrives_as_it_was() {
    let mut rig = rig();
    for name in ["ping-request", "ping6-request", "tcp-syn", "udp"] {
        let expected = (rig.index(1), frame(name)[50..].to_vec());
        assert_eq!(offer(&mut rig, name).sent(), expected, "{name}");
    }
    rig.check_books(1);
}

#[test]
fn what_the_guest_answers_goes_back_as_linux_sent_it() {
    let mut rig = rig();
    for name in ["ping-reply", "tcp-reset"] {
        let expected = frame(name);
        let inner = expected[50..].to_vec();
        let (port, sent) = rig.send(rig.index(1), inner).sent();
        assert_eq!(port, UPLINK);
        assert_eq!(sent[50..], expected[50..]);
        assert_eq!(sent[..14], expected[..14]);
        assert_eq!(sent[26..34], expected[26..34]);
        assert_eq!(sent[42..50], expected[42..50]);
    }
}

#[test]
fn what_linux_says_to_groups_is_not_flooded() {
    let mut rig = rig();
    for name in ["mld-report", "router-solicitation"] {
        let dropped = Outcome::Dropped(DropReason::MulticastUnsupported);
        assert_eq!(offer(&mut rig, name), dropped, "{name}");
    }
}

#[test]
fn a_damaged_capture_is_dropped_for_its_checksum() {
    let mut rig = rig();
    let mut frame = frame("udp");
    let last = frame.len() - 1;
    frame[last] ^= 0x40;
    let offload = Offload { partial: None, udp: checksum::rx_checksum(&frame) };
    let dropped = Outcome::Dropped(DropReason::UnderlayChecksumWrong);
    assert_eq!(rig.offer(&Incoming { port: UPLINK, frame, offload }), dropped);
}
