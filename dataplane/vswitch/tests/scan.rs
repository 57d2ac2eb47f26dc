// SPDX-License-Identifier: Apache-2.0
//! The flow table as it is shown: in steps, filtered, both directions in one row.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

mod support;

use plinth_ids::{Epoch, GroupId};
use plinth_switch_api::{Direction, FlowRow, RuleProtocol, SecurityGroup};
use plinth_vswitch::{FLOW_ROOM_MIN, FlowFilter};
use std::collections::BTreeMap;
use support::*;

fn datagram(rig: &mut Rig, from: (u32, u8, u16), to: (u8, u16)) {
    let frame = frames::udp((mac(from.1), mac(to.0)), (v4(from.1), v4(to.0)), (from.2, to.1), b"x");
    let port = rig.index(from.0);
    rig.once(port, frame).sent();
}

/// All rows, with room for `room` in each step, and the number of steps.
fn rows(rig: &Rig, filter: &FlowFilter, room: usize) -> (Vec<FlowRow>, usize) {
    let (mut all, mut next, mut steps) = (Vec::new(), Some(0), 0);
    while let Some(from) = next {
        let mut rows = Vec::with_capacity(room);
        let before = rows.capacity();
        next = rig.switch.scan_flows(rig.now, from, filter, &mut rows);
        assert_eq!(rows.capacity(), before, "a step does not allocate");
        assert!(next.is_none_or(|next| next > from), "a step goes on");
        all.extend(rows.iter().map(plinth_vswitch::FlowCopy::row));
        steps += 1;
    }
    (all, steps)
}

#[test]
fn every_flow_is_seen_once_however_small_the_steps_are() {
    let mut rig = Rig::new(&two_vpcs());
    for number in 1..=150 {
        datagram(&mut rig, (1, 1, number), (2, 53));
        datagram(&mut rig, (3, 1, number), (2, 80));
    }
    let (whole, _) = rows(&rig, &FlowFilter::default(), 4096);
    let (small, steps) = rows(&rig, &FlowFilter::default(), FLOW_ROOM_MIN);
    assert!(steps > 20, "{steps} steps");
    let keyed = |rows: Vec<FlowRow>| -> BTreeMap<_, _> {
        let count = rows.len();
        let map: BTreeMap<_, _> =
            rows.into_iter().map(|row| ((row.vni, row.key), row.packets)).collect();
        assert_eq!(map.len(), count, "nothing is listed twice");
        map
    };
    let (whole, small) = (keyed(whole), keyed(small));
    assert_eq!(whole.len(), 300);
    assert_eq!(whole, small);
}

#[test]
fn a_filter_leaves_what_it_names() {
    let mut rig = Rig::new(&two_vpcs());
    datagram(&mut rig, (1, 1, 1000), (2, 53));
    datagram(&mut rig, (2, 2, 53), (1, 1000));
    datagram(&mut rig, (3, 1, 1000), (2, 443));
    let count = |rig: &Rig, filter: FlowFilter| rows(rig, &filter, 64).0.len();
    let all = FlowFilter::default();
    assert_eq!(count(&rig, all), 3);
    assert_eq!(count(&rig, FlowFilter { vni: Some(vni(100)), ..all }), 2);
    assert_eq!(count(&rig, FlowFilter { place: Some(rig.index(2)), ..all }), 1);
    assert_eq!(count(&rig, FlowFilter { number: Some(443), ..all }), 1);
    assert_eq!(count(&rig, FlowFilter { number: Some(1000), ..all }), 3);
    assert_eq!(count(&rig, FlowFilter { protocol: Some(6), ..all }), 0);
    assert_eq!(count(&rig, FlowFilter { protocol: Some(17), ..all }), 3);
    let address = |number| Some(plinth_ids::Prefix::host(v4(number).into()));
    assert_eq!(count(&rig, FlowFilter { address: address(1), ..all }), 3);
    assert_eq!(count(&rig, FlowFilter { address: address(4), ..all }), 0);
    // Nobody is filtered, so no connection has a state.
    let state = FlowFilter::state("answered");
    assert_eq!(count(&rig, FlowFilter { state, ..all }), 0);
    assert_eq!(FlowFilter::state("answering"), None);
}

#[test]
fn a_connection_is_one_row_with_the_packets_of_both_directions() {
    let mut config = two_vpcs();
    // Filtered by a group that allows everything between its members.
    let rule = |direction| allow(direction, RuleProtocol::Any, None);
    config.security_groups = vec![SecurityGroup {
        id: GroupId(1),
        name: "all".parse().unwrap(),
        rules: vec![rule(Direction::Inbound), rule(Direction::Outbound)],
    }];
    config.ports[0].security_groups = Some(vec![GroupId(1)]);
    let mut rig = Rig::new(&config);
    datagram(&mut rig, (1, 1, 1000), (2, 53));
    let (one_way, _) = rows(&rig, &FlowFilter::default(), 64);
    assert_eq!(one_way.len(), 1, "the answers' entry is not a flow of its own: {one_way:?}");
    assert_eq!(one_way[0].state.as_deref(), Some("one-way"));
    assert_eq!((one_way[0].packets, one_way[0].packets_back), (1, Some(0)));
    datagram(&mut rig, (2, 2, 53), (1, 1000));
    datagram(&mut rig, (2, 2, 53), (1, 1000));
    rig.now += std::time::Duration::from_secs(3);
    let state = FlowFilter::state("answered");
    let (both, _) = rows(&rig, &FlowFilter { state, ..FlowFilter::default() }, 64);
    assert_eq!(both.len(), 1);
    assert_eq!((both[0].packets, both[0].packets_back), (1, Some(2)));
    assert_eq!((both[0].idle_ms, both[0].age_ms), (3000, 3000));
    assert!(both[0].action.contains("port-2"), "{both:?}");
    // Another configuration: what was decided is in doubt, and shown so.
    config.epoch = Epoch(2);
    rig.switch.apply(rig.now, &config).unwrap();
    let (doubted, _) = rows(&rig, &FlowFilter::default(), 64);
    assert_eq!(doubted[0].action, "in-doubt");
}
