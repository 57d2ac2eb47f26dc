// SPDX-License-Identifier: Apache-2.0
//! Which flows a change disturbs: those of what it is about, and no other one. That these are
//! judged by what was changed, and at once, is shown by the model in `tenants`.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

mod support;

use plinth_ids::{Epoch, MacAddress, PortId, Prefix};
use plinth_switch_api::{
    Change, Edit, NextHop, Remote, Route, Subnet, SubnetPrefix, SwitchConfig, Vpc,
};
use plinth_vswitch::{PortIndex, Snapshot};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use support::*;

const ROUTER: MacAddress = MacAddress([2, 0xee, 0, 0, 0, 1]);

/// VPC 100 of [`two_vpcs`] with a router, by which NIC 4 has what is behind it.
fn config() -> SwitchConfig {
    let mut config = two_vpcs();
    let gateway: IpAddr = Ipv4Addr::new(10, 0, 0, 254).into();
    let prefix = SubnetPrefix { prefix: "10.0.0.0/24".parse().unwrap(), gateway };
    let destination: Prefix = "10.9.0.0/16".parse().unwrap();
    config.vpcs.push(Vpc {
        name: "vpc".parse().unwrap(),
        vni: vni(100),
        router_mac: ROUTER,
        subnets: vec![Subnet { name: "all".parse().unwrap(), prefixes: vec![prefix] }],
        routes: vec![Route { destination, next_hop: NextHop::Address(v4(4).into()) }],
    });
    config
}

struct Changed {
    rig: Rig,
    epoch: u64,
}

/// Flows of port 1: how each is named, and the NIC and address that it is to.
const FLOWS: [(&str, u8, Ipv4Addr); 4] = [
    ("to a neighbor", 2, Ipv4Addr::new(10, 0, 0, 2)),
    ("to the near VTEP", 3, Ipv4Addr::new(10, 0, 0, 3)),
    ("to the far VTEP", 4, Ipv4Addr::new(10, 0, 0, 4)),
    ("by the routing VM", 0, Ipv4Addr::new(10, 9, 0, 1)),
];

impl Changed {
    fn new() -> Self {
        let mut changed = Self { rig: Rig::resolved(&config()), epoch: 1 };
        assert_eq!(changed.judged().len(), FLOWS.len(), "each has a first packet");
        assert_eq!(changed.judged(), [""; 0]);
        changed
    }

    fn change(&mut self, edits: Vec<Edit>) {
        let (from, to) = (Epoch(self.epoch), Epoch(self.epoch + 1));
        self.epoch += 1;
        let change = Change { from, to, edits };
        let snapshot = self.rig.switch.snapshot().change(&change, &limits(), |_, _, _| false);
        self.install(snapshot.unwrap());
    }

    fn install(&mut self, snapshot: Snapshot) {
        self.rig.switch.install(self.rig.now, Arc::new(snapshot));
    }

    /// Sends a packet of each flow, and says of which the stages were asked.
    fn judged(&mut self) -> Vec<&'static str> {
        let port = self.rig.index(1);
        let mut judged = Vec::new();
        for (name, nic, address) in FLOWS {
            let to = if nic == 0 { ROUTER } else { mac(nic) };
            let frame = frames::udp((mac(1), to), (v4(1), address), (1000, 2000), b"x");
            let before = self.rig.switch.flow_counters().misses;
            assert!(matches!(self.rig.once(port, frame), Outcome::Sent { .. }), "{name}");
            if self.rig.switch.flow_counters().misses > before {
                judged.push(name);
            }
        }
        judged
    }
}

fn another(number: u8) -> Remote {
    remote(100, number, NEAR_VTEP)
}

#[test]
fn a_flow_is_judged_again_when_its_own_ends_change_and_not_for_others() {
    let mut changed = Changed::new();
    changed.change(vec![Edit::SetRemote(another(7)), Edit::SetRemote(another(8))]);
    assert_eq!(changed.judged(), [""; 0], "strangers came");
    changed.change(vec![Edit::SetRemote(another(3))]);
    assert_eq!(changed.judged(), [""; 0], "nothing is other than it was");
    let moved = Remote { vtep: FAR_VTEP, ..another(3) };
    changed.change(vec![Edit::SetRemote(moved), Edit::RemoveRemote { vni: vni(100), mac: mac(7) }]);
    assert_eq!(changed.judged(), ["to the near VTEP"]);
    assert_eq!(changed.judged(), [""; 0], "once");
    // Of its two addresses only the other one goes; the NIC is what it was to this flow.
    let halved = Remote { addresses: vec![v4(3).into()], vtep: FAR_VTEP, ..another(3) };
    changed.change(vec![Edit::SetRemote(halved)]);
    assert_eq!(changed.judged(), ["to the near VTEP"], "it may be told apart by no cheap means");
    // Who speaks by another VPC's NIC of the same addresses cannot be told apart by a stamp.
    changed.change(vec![Edit::SetRemote(Remote { vtep: FAR_VTEP, ..remote(200, 3, NEAR_VTEP) })]);
    assert_eq!(changed.judged(), ["to the near VTEP"]);
}

#[test]
fn a_flow_that_slept_through_many_changes_is_judged_by_those_that_concern_it() {
    let mut changed = Changed::new();
    for number in 0..500_u16 {
        let [_, low] = number.to_be_bytes();
        changed.change(vec![Edit::SetRemote(Remote {
            addresses: vec![Ipv4Addr::new(10, 0, 0, 100 + low % 50).into()],
            ..another(100 + low % 50)
        })]);
        if number == 250 {
            changed.change(vec![Edit::SetRemote(Remote { vtep: FAR_VTEP, ..another(3) })]);
        }
    }
    let listed = changed.rig.switch.flows(changed.rig.now, 100);
    assert_eq!(listed.len(), FLOWS.len() - 1, "what is in doubt is not shown as what is done");
    assert_eq!(changed.judged(), ["to the near VTEP"]);
}

#[test]
fn a_next_hop_and_whatever_is_compiled_concern_every_flow() {
    let all = FLOWS.map(|(name, ..)| name);
    let mut changed = Changed::new();
    changed.change(vec![Edit::SetRemote(Remote { vtep: NEAR_VTEP, ..another(4) })]);
    assert_eq!(changed.judged(), all);
    changed.change(vec![Edit::RemovePort { id: PortId(4) }]);
    assert_eq!(changed.judged(), all);
    // One that was made of another than the one in force: nobody knows what is different.
    let snapshot = changed.rig.switch.snapshot();
    let (from, to) = (Epoch(changed.epoch), Epoch(changed.epoch + 1));
    let make = |number| {
        let change = Change { from, to, edits: vec![Edit::SetRemote(another(number))] };
        snapshot.change(&change, &limits(), |_, _, _| false).unwrap()
    };
    let [first, second] = [make(7), make(8)];
    changed.install(first);
    assert_eq!(changed.judged(), [""; 0]);
    changed.install(second);
    assert_eq!(changed.judged(), all);
    assert_eq!(changed.rig.switch.counters(PortIndex::UPLINK).drops_decided(), 0);
}
