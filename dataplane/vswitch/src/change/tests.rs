// SPDX-License-Identifier: Apache-2.0
//! Edits carried out one by one against the edited configuration, compiled.

use super::*;
use plinth_ids::{GroupId, MacAddress, PortId, Vni};
use plinth_switch_api::{
    BackendState, ForwardProtocol, GuestPort, PortLimits, Scheduler, SecurityGroup, Subnet,
    SubnetPrefix, SwitchConfig, Underlay, Vpc,
};
use proptest::prelude::*;
use std::net::Ipv4Addr;

const VTEPS: [Ipv4Addr; 5] = [
    Ipv4Addr::new(172, 16, 0, 2),
    Ipv4Addr::new(172, 16, 0, 3),
    Ipv4Addr::new(172, 16, 0, 4),
    // The switch's own, and one behind a gateway that is not there.
    Ipv4Addr::new(172, 16, 0, 1),
    Ipv4Addr::new(172, 17, 0, 1),
];
/// The VPC, a flat segment, and none.
const VNIS: [u32; 3] = [7, 8, 0];
const MACS: u8 = 7;

/// So small that they are reached.
fn limits() -> Limits {
    Limits { remotes: 5, next_hops: 2, addresses_per_nic: 2, ports: 4, ..Limits::default() }
}

fn vni(raw: u32) -> Vni {
    Vni::new(raw).unwrap()
}

fn mac(number: u8) -> MacAddress {
    MacAddress([2, 0, 0, 0, 0, number])
}

/// 1 is the gateway's, 6 the balancer's, 7 that of a backend; 8 and 9 are outside of the subnet.
fn address(number: u8) -> IpAddr {
    match number {
        8 => link_local_of(mac(2)).into(),
        9 => Ipv4Addr::new(10, 1, 0, 9).into(),
        _ => Ipv4Addr::new(10, 0, 0, number).into(),
    }
}

fn base() -> SwitchConfig {
    let backend = Backend { address: address(7), port: 80, weight: 1, state: BackendState::Active };
    let listener = Listener {
        protocol: ForwardProtocol::Tcp,
        ports: (80, 80),
        scheduler: Scheduler::RoundRobin,
        stickiness: None,
        check: None,
        backends: vec![backend],
    };
    let balancer = Balancer {
        name: "web".parse().unwrap(),
        vni: vni(7),
        address: address(6),
        line: None,
        listeners: vec![listener],
    };
    let prefix = SubnetPrefix { prefix: "10.0.0.0/24".parse().unwrap(), gateway: address(1) };
    let vpc = Vpc {
        name: "vpc".parse().unwrap(),
        vni: vni(7),
        router_mac: mac(1),
        subnets: vec![Subnet { name: "front".parse().unwrap(), prefixes: vec![prefix] }],
        routes: Vec::new(),
    };
    SwitchConfig {
        underlay: Some(Underlay {
            device: "net_af_packet0,iface=uplink".to_owned(),
            vtep: VTEPS[3],
            prefix_length: 24,
            gateway: None,
            mac: mac(99),
            mtu: 1500,
        }),
        vpcs: vec![vpc],
        balancers: vec![balancer],
        ..SwitchConfig::empty(Epoch(1))
    }
}

fn nic() -> impl Strategy<Value = (Vni, MacAddress, Vec<IpAddr>)> {
    let vnis = prop_oneof![20 => Just(VNIS[0]), 10 => Just(VNIS[1]), 1 => Just(VNIS[2])];
    let list = proptest::collection::vec((1..10_u8).prop_map(address), 0..3);
    (vnis.prop_map(vni), (1..MACS).prop_map(mac), list)
}

fn remote() -> impl Strategy<Value = Remote> {
    let vteps = prop_oneof![12 => 0..3_usize, 1 => 3..5_usize].prop_map(|place| VTEPS[place]);
    let groups = proptest::collection::vec((0..4_u32).prop_map(GroupId), 0..2);
    let subnets = prop_oneof![3 => Just(None), 1 => Just(Some("front".parse().unwrap()))];
    (nic(), vteps, groups, subnets).prop_map(|((vni, mac, addresses), vtep, groups, subnet)| {
        Remote { vni, mac, addresses, vtep, subnet, security_groups: groups, allowed: Vec::new() }
    })
}

fn port() -> impl Strategy<Value = GuestPort> {
    (1..4_u32, nic()).prop_map(|(id, (vni, mac, addresses))| GuestPort {
        id: PortId(id),
        name: format!("port-{id}").parse().unwrap(),
        vni,
        mac,
        addresses,
        socket: format!("/run/{id}.sock").into(),
        mtu: 1450,
        queue_pairs: 1,
        subnet: None,
        security_groups: Some(vec![GroupId(1)]),
        allowed: Vec::new(),
        limits: PortLimits::NONE,
    })
}

fn edit() -> impl Strategy<Value = Edit> {
    let group = (1..3_u32).prop_map(|id| SecurityGroup {
        id: GroupId(id),
        name: format!("group-{id}").parse().unwrap(),
        rules: Vec::new(),
    });
    prop_oneof![
        12 => remote().prop_map(Edit::SetRemote),
        5 => nic().prop_map(|(vni, mac, _)| Edit::RemoveRemote { vni, mac }),
        2 => port().prop_map(Edit::SetPort),
        1 => (1..4_u32).prop_map(|id| Edit::RemovePort { id: PortId(id) }),
        2 => group.prop_map(Edit::SetGroup),
    ]
}

/// Everything that a packet can ask of the tables that edits touch, with places by their names.
fn answers(snapshot: &Snapshot) -> Vec<String> {
    let mut all = Vec::new();
    let vtep_of = |place: TunnelIndex| snapshot.tunnel(place).vtep;
    let place_of = |destination| match destination {
        Destination::Local(index) => format!("{}", snapshot.port(index).unwrap().id),
        Destination::Remote(tunnel) => format!("{}", vtep_of(tunnel)),
    };
    for vni in VNIS.map(vni) {
        for mac in (0..=MACS).map(mac) {
            all.push(format!("{vni} {mac} {:?}", snapshot.destination(vni, mac).map(place_of)));
        }
        let link_locals = (0..=MACS).map(|number| IpAddr::V6(link_local_of(mac(number))));
        for address in (1..10).map(address).chain(link_locals) {
            let owner = snapshot.owner(vni, address);
            let owner = owner.map(|owner| {
                let groups = snapshot.security().described(owner.groups);
                (owner.mac, place_of(owner.destination), groups)
            });
            all.push(format!("{vni} {address} {owner:?}"));
        }
        for vtep in VTEPS {
            let back = snapshot.remote_vtep(vni, vtep).map(vtep_of);
            all.push(format!("{vni} {vtep} {back:?} {}", snapshot.has_vni(vni)));
        }
    }
    all.push(format!("{:?}", snapshot.balancers.choices()));
    all
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn edits_one_by_one_are_the_edited_configuration_compiled_or_refused_with_it(
        messages in proptest::collection::vec(proptest::collection::vec(edit(), 1..5), 1..24),
    ) {
        let fresh = Snapshot::default();
        let mut config = base();
        let mut snapshot = Snapshot::compile(&config, &limits(), &fresh).unwrap();
        for edits in messages {
            let mut wanted = SwitchConfig { epoch: Epoch(config.epoch.0 + 1), ..config.clone() };
            let mut compiled = None;
            let fault = edits.iter().position(|edit| {
                let is_there = wanted.edit(edit).is_ok();
                compiled = Snapshot::compile(&wanted, &limits(), &fresh).ok();
                !is_there || compiled.is_none()
            });
            let change = Change { from: config.epoch, to: wanted.epoch, edits };
            let changed = snapshot.change(&change, &limits(), |_, _, _| false);
            match (fault, changed) {
                (None, Ok(changed)) => {
                    prop_assert_eq!(answers(&changed), answers(&compiled.unwrap()));
                    prop_assert!(changed.is_of(&wanted));
                    prop_assert!(changed.is_of(&changed.config().unwrap()));
                    (snapshot, config) = (changed, wanted);
                }
                (Some(at), Err(ChangeError::NotThere { place, .. })) => prop_assert_eq!(at, place),
                (Some(at), Err(ChangeError::Refused { place, .. })) => prop_assert_eq!(at, place),
                (fault, changed) => {
                    prop_assert!(false, "{fault:?}, but {:?}", changed.map(|_| ()));
                }
            }
        }
    }
}

#[test]
fn a_change_to_another_base_or_to_no_newer_number_is_refused() {
    let snapshot = Snapshot::compile(&base(), &limits(), &Snapshot::default()).unwrap();
    let refusal = |from, to| {
        let change = Change { from: Epoch(from), to: Epoch(to), edits: Vec::new() };
        snapshot.change(&change, &limits(), |_, _, _| false).unwrap_err()
    };
    let (from, in_force) = (Epoch(2), Some(Epoch(1)));
    assert_eq!(refusal(2, 3), ChangeError::Base { from, in_force });
    let (from, to) = (Epoch(1), Epoch(1));
    assert_eq!(refusal(1, 1), ChangeError::NotNewer { from, to });
    let many = vec![Edit::RemovePort { id: PortId(1) }; EDITS_MAX + 1];
    let change = Change { from, to: Epoch(2), edits: many };
    let error = snapshot.change(&change, &limits(), |_, _, _| false).unwrap_err();
    assert_eq!(error, ChangeError::TooMany { found: EDITS_MAX + 1 });
}
