// SPDX-License-Identifier: Apache-2.0
//! Four tenants: their addresses, and configurations of them.

use super::support::generate::Random;
use super::support::*;
use plinth_ids::{Epoch, GroupId, MacAddress};
use plinth_switch_api::{
    Direction, NextHop, Priority, Remote, Route, Rule, RulePeer, RuleProtocol, RuleVerdict,
    SecurityGroup, Subnet, SubnetPrefix, SwitchConfig, Vpc,
};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub(crate) const TENANTS: usize = 4;
/// The last of a tenant's NICs is behind the near VTEP, the others are here.
pub(crate) const NICS: usize = 4;
/// The NIC that may speak from elsewhere, and that routes lead to.
pub(crate) const ROUTING: usize = 3;

fn byte(number: usize) -> u8 {
    u8::try_from(number).unwrap()
}

/// The first and the last tenant have the same addresses.
fn plan(tenant: usize) -> u8 {
    byte(tenant % 3)
}

pub(crate) fn segment(tenant: usize) -> u32 {
    100 * (1 + u32::try_from(tenant).unwrap())
}

pub(crate) fn port_id(tenant: usize, nic: usize) -> u32 {
    u32::try_from(tenant * 8 + nic).unwrap()
}

pub(crate) fn mac_of(nic: usize) -> MacAddress {
    mac(byte(nic))
}

pub(crate) fn router_of(tenant: usize) -> MacAddress {
    MacAddress([2, 0xee, 0, 0, 0, byte(tenant)])
}

fn at(plan: u8, subnet: u8, host: u8, is_v6: bool) -> IpAddr {
    if is_v6 {
        Ipv6Addr::new(0xfd00, 0, 0, u16::from(plan) * 16 + u16::from(subnet), 0, 0, 0, host.into())
            .into()
    } else {
        Ipv4Addr::new(10, plan, subnet, host).into()
    }
}

pub(crate) fn subnet_of(nic: usize) -> usize {
    1 + nic % 2
}

pub(crate) fn address(tenant: usize, nic: usize, is_v6: bool) -> IpAddr {
    at(plan(tenant), byte(subnet_of(nic)), byte(nic), is_v6)
}

pub(crate) fn gateway(tenant: usize, subnet: usize, is_v6: bool) -> IpAddr {
    at(plan(tenant), byte(subnet), 254, is_v6)
}

/// An address of no tenant: behind a routing VM, in a black hole within that, or nowhere.
pub(crate) fn elsewhere(is_v6: bool, which: usize) -> IpAddr {
    let (plan, subnet) = [(9, 2), (9, 1), (14, 0)][which];
    at(plan, subnet, 7, is_v6)
}

/// An address of a subnet that a tenant does not have, though a peer's route to him covers it.
pub(crate) fn beyond(tenant: usize, is_v6: bool) -> IpAddr {
    at(plan(tenant), 7, 1, is_v6)
}

fn prefix(of: IpAddr, length: u8) -> plinth_ids::Prefix {
    let network: IpAddr = match of {
        IpAddr::V4(of) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0);
            Ipv4Addr::from_bits(of.to_bits() & mask).into()
        }
        IpAddr::V6(of) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0);
            Ipv6Addr::from_bits(of.to_bits() & mask).into()
        }
    };
    plinth_ids::Prefix::new(network, length).unwrap()
}

fn rule(random: &mut Random) -> Rule {
    let is_v6 = random.percent(50);
    let any = address(random.below(TENANTS), 1 + random.below(NICS), is_v6);
    let lengths = if is_v6 { [128, 64, 60, 0] } else { [32, 24, 16, 0] };
    let protocol = random.pick(&[RuleProtocol::Any, RuleProtocol::Udp, RuleProtocol::Tcp]);
    let ports = [None, Some((53, 80)), Some((80, 80)), Some((1, 1000))];
    Rule {
        direction: random.pick(&[Direction::Inbound, Direction::Outbound]),
        priority: random.pick(&[Priority::High, Priority::Mid, Priority::Low]),
        verdict: random.pick(&[RuleVerdict::Allow, RuleVerdict::Allow, RuleVerdict::Deny]),
        protocol,
        ports: if protocol == RuleProtocol::Any { None } else { random.pick(&ports) },
        icmp: None,
        peer: match random.below(4) {
            0 => RulePeer::Prefix(prefix(any, random.pick(&lengths))),
            1 => RulePeer::Group(GroupId(u32::try_from(1 + random.below(3)).unwrap())),
            _ => RulePeer::Any,
        },
    }
}

pub(crate) fn groups(random: &mut Random) -> Vec<GroupId> {
    (1..=3).filter(|_| random.percent(50)).map(GroupId).collect()
}

/// Routes by a VM, black holes, and a way for single addresses, of one family.
fn routes(random: &mut Random, tenant: usize, is_v6: bool) -> Vec<Route> {
    let (mut routes, lengths) = (Vec::new(), if is_v6 { [60, 64, 128] } else { [16, 24, 32] });
    let via = NextHop::Address(address(tenant, ROUTING, is_v6));
    let far = NextHop::Address(address(tenant, NICS, is_v6));
    let mut add = |share, of, length, next_hop| {
        if random.percent(share) {
            routes.push(Route { destination: prefix(of, length), next_hop });
        }
    };
    add(70, elsewhere(is_v6, 0), lengths[0], via);
    add(50, elsewhere(is_v6, 1), lengths[1], NextHop::Blackhole);
    add(25, address(tenant, 1, is_v6), lengths[2], via);
    add(25, elsewhere(is_v6, 2), lengths[0], far);
    routes
}

/// The NIC of a tenant that is behind a tunnel.
pub(crate) fn remote_of(random: &mut Random, tenant: usize) -> Remote {
    let mut remote = remote(segment(tenant), byte(NICS), NEAR_VTEP);
    remote.addresses = vec![address(tenant, NICS, false), address(tenant, NICS, true)];
    remote.security_groups = groups(random);
    remote
}

pub(crate) fn config(random: &mut Random, epoch: u64) -> SwitchConfig {
    let mut config = two_vpcs();
    config.epoch = Epoch(epoch);
    (config.ports, config.remotes) = (Vec::new(), Vec::new());
    let peerings: Vec<bool> = (1..TENANTS).map(|_| random.percent(60)).collect();
    for tenant in 0..TENANTS {
        let both = |nic| vec![address(tenant, nic, false), address(tenant, nic, true)];
        for nic in 1..NICS {
            let mut port = port(port_id(tenant, nic), segment(tenant), byte(nic));
            port.addresses = both(nic);
            port.security_groups = random.percent(60).then(|| groups(random));
            if nic == ROUTING && random.percent(60) {
                let of = |is_v6, length| prefix(elsewhere(is_v6, 0), length);
                port.allowed = vec![of(false, 16), of(true, 60)];
            }
            config.ports.push(port);
        }
        config.remotes.push(remote_of(random, tenant));
        let subnet = |number: usize| {
            let of = |is_v6, length| {
                let gateway = gateway(tenant, number, is_v6);
                SubnetPrefix { prefix: prefix(gateway, length), gateway }
            };
            let name = format!("subnet-{number}").parse().unwrap();
            Subnet { name, prefixes: vec![of(false, 24), of(true, 64)] }
        };
        let mut all: Vec<Route> =
            [false, true].into_iter().flat_map(|is_v6| routes(random, tenant, is_v6)).collect();
        // Each is a peer of the next one, or not.
        let neighbors = [tenant.checked_sub(1), Some(tenant + 1).filter(|next| *next < TENANTS)];
        for peer in neighbors.into_iter().flatten() {
            if peerings[tenant.min(peer)] {
                all.extend([(false, 16), (true, 60)].map(|(is_v6, length)| Route {
                    destination: prefix(address(peer, 1, is_v6), length),
                    next_hop: NextHop::Peer(vni(segment(peer))),
                }));
            }
        }
        config.vpcs.push(Vpc {
            vni: vni(segment(tenant)),
            name: format!("vpc-{tenant}").parse().unwrap(),
            router_mac: router_of(tenant),
            subnets: vec![subnet(1), subnet(2)],
            routes: all,
        });
    }
    config.security_groups = (1..=3)
        .map(|id| SecurityGroup {
            id: GroupId(id),
            name: format!("group-{id}").parse().unwrap(),
            rules: (0..random.below(7)).map(|_| rule(random)).collect(),
        })
        .collect();
    config
}
