// SPDX-License-Identifier: Apache-2.0
//! How much an external address carries, on a clock that the test moves.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

mod support;

use plinth_ids::{Epoch, Moment};
use plinth_switch_api::{AddressLimits, RateLimit};
use std::time::Duration;
use support::outside::*;
use support::*;

/// Asks for a bandwidth out and a packet rate in, offers ten times that, and answers bits a
/// second that left and packets a second that came in, over ten seconds.
fn carried(story: &mut Story, bits: u64, packets: u64) -> (u64, u64) {
    story.apply(|config| {
        config.external.addresses[0].limits = AddressLimits {
            outbound: RateLimit { bits_per_second: Some(bits), ..RateLimit::NONE },
            inbound: RateLimit { packets_per_second: Some(packets), ..RateLimit::NONE },
        };
    });
    let out = Ip::udp((v4(1), WEB), (1000, 53), &[0; 958]).frame((mac(1), ROUTER), 64);
    let back = Ip::udp((WEB, EIP), (53, 1000), b"x").frame((GATEWAY_MAC, OUR_MAC), 64);
    let (place, length) = (story.rig.index(1), out.len() as u64 * 8);
    let step = |per_second: u64, each: u64| Duration::from_nanos(each * 100_000_000 / per_second);
    let (mut next_out, mut next_back) = (story.rig.now, story.rig.now);
    let (begin, mut sent) = (story.rig.now + Duration::from_secs(1), (0, 0));
    // A second for what was saved up, then ten that count.
    while story.rig.now < begin + Duration::from_secs(10) {
        story.rig.now = next_out.min(next_back);
        let is_out = next_out <= next_back;
        let outcome = if is_out {
            next_out += step(bits, length);
            story.rig.once(place, out.clone())
        } else {
            next_back += step(packets, 1);
            story.rig.once(UPLINK, back.clone())
        };
        let is_sent = matches!(outcome, Outcome::Sent { .. }) && story.rig.now >= begin;
        *(if is_out { &mut sent.0 } else { &mut sent.1 }) += u64::from(is_sent);
    }
    (sent.0 * length / 10, sent.1 / 10)
}

#[test]
fn an_external_address_is_held_to_its_limits_both_ways_and_they_change_at_once() {
    let mut story = Story::new();
    for (bits, packets) in [(2_000_000, 500), (8_000_000, 200), (1_000_000, 1000)] {
        let (out, back) = carried(&mut story, bits, packets);
        let is_near = |found: u64, asked: u64| found.abs_diff(asked) * 100 <= asked * 3;
        assert!(is_near(out, bits), "{out} bits of {bits}");
        assert!(is_near(back, packets), "{back} packets of {packets}");
    }
    let counted = story.rig.switch.external_addresses();
    let eip = counted.iter().find(|counted| counted.address == EIP).unwrap();
    assert!(eip.dropped_in > eip.packets_in / 2 && eip.dropped_out > eip.packets_out, "{eip:?}");
    // Another address is not concerned, nor is this one when the limit is gone.
    let (place, other) = (story.rig.index(2), Ip::udp((v4(2), WEB), (1000, 53), b"x"));
    for _ in 0..1000 {
        story.rig.once(place, other.frame((mac(2), ROUTER), 64)).sent();
    }
    story.apply(|config| config.external.addresses[0].limits = AddressLimits::default());
    for _ in 0..1000 {
        story.out(1, &Ip::udp((v4(1), WEB), (1000, 53), &[0; 958])).sent();
    }
}

#[test]
fn limits_of_an_external_address_out_of_range_are_refused() {
    let mut config = outside();
    let outbound = RateLimit { bits_per_second: Some(1), ..RateLimit::NONE };
    config.external.addresses[0].limits.outbound = outbound;
    config.epoch = Epoch(2);
    let error = Rig::new(&outside()).switch.apply(Moment::ZERO, &config).unwrap_err().to_string();
    assert!(error.contains(&format!("external address {EIP}")), "{error}");
}
