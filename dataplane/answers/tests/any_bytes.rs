// SPDX-License-Identifier: Apache-2.0
#![allow(clippy::unwrap_used, reason = "the helper functions of a test are test code too")]
//! Whatever a guest sends, there is an answer or silence, and an answer is a frame that a guest
//! can read.

mod common;

use common::{GUEST, PORT, config, frame, open};
use plinth_answers::{Answer, Directory};
use plinth_ids::MacAddress;
use proptest::prelude::*;
use std::net::SocketAddr;

/// A DHCP discovery, a DHCPv6 solicitation and a DNS question, to be damaged.
fn seeds() -> Vec<(SocketAddr, SocketAddr, Vec<u8>)> {
    let mut dhcp = vec![1, 1, 6, 0, 0, 0, 0, 7];
    dhcp.resize(28, 0);
    dhcp.extend_from_slice(&GUEST.0);
    dhcp.resize(236, 0);
    dhcp.extend_from_slice(&[0x63, 0x82, 0x53, 0x63, 53, 1, 1, 61, 3, 1, 2, 3, 255]);
    let mut dhcpv6 = vec![1, 1, 2, 3, 0, 1, 0, 4, 0, 3, 0, 9, 0, 3, 0, 12, 0, 0, 0, 9];
    dhcpv6.extend_from_slice(&[0; 8]);
    let mut dns = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    dns.extend_from_slice(b"\x05web-1\x04shop\x08internal\x00\x00\x01\x00\x01");
    let end = |text: &str| text.parse().unwrap();
    vec![
        (end("0.0.0.0:68"), end("255.255.255.255:67"), dhcp),
        (end("[fe80::ff:fe00:1]:546"), end("[ff02::1:2]:547"), dhcpv6),
        (end("10.0.0.5:999"), end("10.0.0.1:53"), dns),
    ]
}

fn check(answer: &Answer) {
    let frame = match answer {
        Answer::Reply(frame) => frame.clone(),
        Answer::Forward(question) => question.reply(&question.message).unwrap(),
        Answer::Segment(_) => panic!("the configuration has nothing that is asked by a connection"),
        Answer::Silence(_) => return,
    };
    let opened = open(&frame);
    assert!([GUEST, MacAddress::BROADCAST].contains(&opened.to_mac), "{opened:?}");
    assert!([53, 67, 547].contains(&opened.from.port()), "{opened:?}");
    assert_eq!(opened.from.is_ipv4(), opened.to.is_ipv4());
    assert!((1..=1300).contains(&opened.payload.len()));
}

#[test]
fn the_seeds_are_answered() {
    let directory = Directory::new(&config());
    for (from, to, payload) in seeds() {
        let answer = directory.answer(PORT, &frame(GUEST, from, to, &payload));
        assert!(matches!(answer, Answer::Reply(_)), "{answer:?}");
        check(&answer);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn a_damaged_message_is_answered_or_not(
        seed in 0..3usize,
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
        cut in any::<prop::sample::Index>(),
        more in prop::collection::vec(any::<u8>(), 0..64),
    ) {
        let (from, to, mut payload) = seeds().swap_remove(seed);
        for (at, value) in damage {
            let at = at.index(payload.len());
            payload[at] = value;
        }
        payload.truncate(payload.len() - cut.index(payload.len() / 4));
        payload.extend_from_slice(&more);
        check(&Directory::new(&config()).answer(PORT, &frame(GUEST, from, to, &payload)));
    }

    #[test]
    fn any_frame_is_answered_or_not(
        mut bytes in prop::collection::vec(any::<u8>(), 0..400),
        whole in any::<bool>(),
    ) {
        if whole && bytes.len() > 12 {
            bytes[6..12].copy_from_slice(&GUEST.0);
        }
        check(&Directory::new(&config()).answer(PORT, &bytes));
    }
}
