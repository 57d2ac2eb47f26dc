// SPDX-License-Identifier: Apache-2.0
//! Kernels' stacks that meet over IPv6, by peerings and by a VM that routes, and by rules with
//! groups through VXLAN while the wire loses packets.

use crate::network::{VNI, mac, node, vtep};
use crate::vpc::{at, guest, vpc};
use anyhow::{Context, Result, ensure};
use plinth_ids::{GroupId, MacAddress, Vni};
use plinth_stage::runner::Length;
use plinth_stage::tap_guest::{NIC, stream};
use plinth_stage::{Namespace, Scratch, Switch, TapGuest, within};
use plinth_switch_api::{
    Direction, NextHop, Priority, Route, Rule, RulePeer, RuleProtocol, RuleVerdict, SecurityGroup,
    Subnet, SubnetDhcp, SubnetPrefix, Vpc,
};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

const PEER_VNI: u32 = 300;
const STRANGER_VNI: u32 = 400;
const PATIENCE: Duration = Duration::from_secs(20);
const PEER: Ipv4Addr = Ipv4Addr::new(10, 3, 1, 5);
/// Behind the guest that routes.
const BEHIND: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);
const BEHIND_V6: &str = "fd00:9::1";
const STREAM_LEAST: u64 = 1_000_000;

/// The address that a guest makes of its MAC in `fd00:N::/64`.
fn own_ipv6(net: u16, mac: MacAddress) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac.0.map(u16::from);
    let (first, second) = ((a ^ 2) << 8 | b, c << 8 | 0xff);
    Ipv6Addr::new(0xfd00, net, 0, 0, first, second, 0xfe00 | d, e << 8 | f)
}

fn range(net: u16) -> Result<SubnetPrefix> {
    let prefix = format!("fd00:{net:x}::/64").parse()?;
    Ok(SubnetPrefix { prefix, gateway: format!("fd00:{net:x}::1").parse()? })
}

/// A VPC of one subnet, 10.3.1.0/24 and fd00:3::/64.
fn peer_vpc() -> Result<Vpc> {
    let mut peer = vpc(PEER_VNI)?;
    let gateway = IpAddr::V4(Ipv4Addr::new(10, 3, 1, 1));
    let prefix = SubnetPrefix { prefix: "10.3.1.0/24".parse()?, gateway };
    peer.subnets = vec![Subnet { name: "subnet-1".parse()?, prefixes: vec![prefix, range(3)?] }];
    Ok(peer)
}

fn to(destination: &str, next_hop: NextHop) -> Result<Route> {
    Ok(Route { destination: destination.parse()?, next_hop })
}

/// Has the kernel make its address of what the router says.
fn speak_ipv6(guest: &TapGuest, own: Ipv6Addr) -> Result<()> {
    guest.namespace.run(&format!("sysctl -q -w net.ipv6.conf.{NIC}.accept_ra=2"))?;
    guest.namespace.run(&format!("sysctl -q -w net.ipv6.conf.{NIC}.disable_ipv6=0"))?;
    within(PATIENCE, "the kernel has its address of IPv6", || {
        let text = guest.namespace.ip(&format!("-6 address show dev {NIC}"))?;
        ensure!(text.contains(&format!("{own}/64")) && !text.contains("tentative"), "{text}");
        let text = guest.namespace.ip("-6 route show default")?;
        ensure!(text.contains("via fe80::"), "no default route: {text}");
        Ok(())
    })
}

fn pings(guest: &TapGuest, to: &str, count: u32) -> Result<()> {
    let text = guest.namespace.run(&format!("ping -n -c {count} -i 0.02 -W 2 {to}"))?;
    ensure!(text.contains(" 0% packet loss"), "{text}");
    Ok(())
}

fn is_deaf(guest: &TapGuest, to: &str) -> bool {
    guest.namespace.run(&format!("ping -n -c 2 -i 0.1 -W 1 {to}")).is_err()
}

/// Guests of two peers, one that routes, and one of a stranger with the first one's addresses.
struct Peers {
    one: TapGuest,
    next: TapGuest,
    router: TapGuest,
    peer: TapGuest,
    stranger: TapGuest,
    switch: Switch,
    scratch: Scratch,
}

impl Peers {
    fn new() -> Result<Self> {
        let scratch = Scratch::new()?;
        let mut switch = Switch::start(&scratch, "s", None)?;
        let one = guest(&scratch, &mut switch, "g1", (1, VNI, at(1, 5)))?;
        let next = guest(&scratch, &mut switch, "g2", (2, VNI, at(1, 6)))?;
        let router = guest(&scratch, &mut switch, "g3", (3, VNI, at(2, 7)))?;
        let socket = switch.add_port(4, PEER_VNI, mac(0x35), PEER);
        let peer = TapGuest::start(&scratch, "p1", &socket, mac(0x35), PEER)?;
        peer.namespace.ip(&format!("route add default via 10.3.1.1 dev {NIC}"))?;
        let stranger = guest(&scratch, &mut switch, "o1", (5, STRANGER_VNI, at(1, 5)))?;
        Ok(Self { one, next, router, peer, stranger, switch, scratch })
    }

    /// The address of IPv6 of a port, if it is that of `fd00:N::/64`.
    fn own(&mut self, port: usize, net: u16) -> Ipv6Addr {
        own_ipv6(net, self.switch.config().ports[port].mac)
    }

    fn configure(&mut self) -> Result<()> {
        let nets = [(0, 1), (1, 1), (2, 2), (3, 3), (4, 1)];
        let owns = nets.map(|(port, net)| (port, self.own(port, net)));
        let config = self.switch.config();
        for (port, own) in owns {
            config.ports[port].addresses.push(own.into());
        }
        config.ports[2].allowed = vec!["10.9.0.0/24".parse()?, "fd00:9::/64".parse()?];
        config.ports[3].subnet = Some("subnet-1".parse()?);
        let peer = Vni::new(PEER_VNI).context("24 bits")?;
        let mut own = vpc(VNI)?;
        own.subnets[0].prefixes.push(range(1)?);
        own.subnets[1].prefixes.push(range(2)?);
        own.routes = vec![
            to("10.3.0.0/16", NextHop::Peer(peer))?,
            to("fd00:3::/64", NextHop::Peer(peer))?,
            to("10.9.0.0/24", NextHop::Address(at(2, 7).into()))?,
            to("fd00:9::/64", NextHop::Address(owns[2].1.into()))?,
        ];
        let mut other = peer_vpc()?;
        for destination in ["10.0.0.0/16", "fd00:1::/64", "fd00:2::/64"] {
            other.routes.push(to(destination, NextHop::Peer(own.vni))?);
        }
        let mut stranger = vpc(STRANGER_VNI)?;
        stranger.subnets[0].prefixes.push(range(1)?);
        config.vpcs = vec![own, other, stranger];
        let served = [(VNI, "subnet-1"), (VNI, "subnet-2"), (PEER_VNI, "subnet-1")];
        for (vni, subnet) in served.into_iter().chain([(STRANGER_VNI, "subnet-1")]) {
            config.answers.dhcp.push(SubnetDhcp {
                vni: Vni::new(vni).context("24 bits")?,
                subnet: subnet.parse()?,
                lease_seconds: 600,
                dns: vec!["fd00:1::53".parse()?],
                domain: None,
                routes: Vec::new(),
                ntp: Vec::new(),
            });
        }
        self.switch.apply()?;
        self.switch.wait_for_guests()
    }

    /// A guest that forwards to an address of its own, which its NIC does not have.
    fn forward(&self) -> Result<()> {
        let namespace = &self.router.namespace;
        namespace.ip("link set lo up")?;
        namespace.run("sysctl -q -w net.ipv6.conf.lo.disable_ipv6=0")?;
        namespace.ip(&format!("address add {BEHIND}/32 dev lo"))?;
        namespace.ip(&format!("address add {BEHIND_V6}/128 dev lo")).map(drop)
    }
}

pub(crate) fn both_families(_length: Length) -> Result<()> {
    let mut peers = Peers::new()?;
    peers.configure()?;
    let nets = [(0, 1), (1, 1), (2, 2), (3, 3), (4, 1)];
    let owns = nets.map(|(port, net)| peers.own(port, net));
    let guests = [&peers.one, &peers.next, &peers.router, &peers.peer, &peers.stranger];
    for (guest, own) in guests.into_iter().zip(owns) {
        speak_ipv6(guest, own)?;
    }
    peers.forward()?;
    let [_, next, router, peer, _] = owns.map(|own| own.to_string());
    for to in [&next, &router, &peer, BEHIND_V6, &PEER.to_string(), &BEHIND.to_string()] {
        pings(&peers.one, to, 20).with_context(|| to.to_owned())?;
    }
    pings(&peers.peer, &owns[0].to_string(), 20)?;
    // A peer's routes are its own: nobody gets through it to what is behind it.
    for to in [BEHIND_V6, &BEHIND.to_string()] {
        ensure!(is_deaf(&peers.peer, to), "a peer is a way through to {to}");
    }
    for to in [&next, &peer, BEHIND_V6, &PEER.to_string()] {
        ensure!(is_deaf(&peers.stranger, to), "the stranger reaches {to}");
    }
    // A kernel asks its router again once it has heard nothing of it for half a minute, and gives
    // it up if it is said to be none.
    for guest in [&peers.one, &peers.router] {
        let text = guest.namespace.ip(&format!("-6 neighbor show dev {NIC}"))?;
        let router = text.lines().find_map(|line| {
            line.split(' ').next().filter(|address| address.starts_with("fe80::52"))
        });
        let router = router.context("the router is no neighbor")?;
        guest.namespace.ip(&format!("-6 neighbor change {router} dev {NIC} nud probe"))?;
    }
    let neighbors = peers.one.namespace.ip(&format!("-6 neighbor show dev {NIC}"))?;
    ensure!(neighbors.contains(&next), "the neighbor was found by ND: {neighbors}");
    stateless(&peers.scratch, &peers.one)?;
    parted(&mut peers, &peer)
}

/// Settings without an address, as ISC's client asks for them.
fn stateless(scratch: &Scratch, guest: &TapGuest) -> Result<()> {
    let (script, told) = (scratch.join("dhclient6.sh"), scratch.join("dhclient6.env"));
    let text = format!("#!/bin/sh\n[ \"$reason\" = PREINIT6 ] || env > {}\n", told.display());
    std::fs::write(&script, text).context("the client's script")?;
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755))?;
    let file = |name: &str| scratch.join(name).display().to_string();
    let files = format!("-lf {} -pf {}", file("leases6"), file("dhclient6.pid"));
    let run = |options: &str| {
        let line = format!("dhclient -6 {options} {files} -sf {} {NIC}", script.display());
        guest.namespace.run(&line)
    };
    run("-S -1")?;
    let told = std::fs::read_to_string(&told).context("the client was told nothing");
    run("-x")?;
    let told = told?;
    let line = "new_dhcp6_name_servers=fd00:1::53";
    ensure!(told.lines().any(|said| said == line), "{line} is not in:\n{told}");
    Ok(())
}

/// Without their routes to each other, peers are strangers, and their conversations end.
fn parted(peers: &mut Peers, to: &str) -> Result<()> {
    for vpc in &mut peers.switch.config().vpcs {
        vpc.routes.retain(|route| !matches!(route.next_hop, NextHop::Peer(_)));
    }
    peers.switch.apply()?;
    for to in [to, &PEER.to_string()] {
        ensure!(is_deaf(&peers.one, to), "{to} is reached without a route");
    }
    pings(&peers.one, BEHIND_V6, 5)
}

fn rule(direction: Direction, peer: RulePeer) -> Rule {
    Rule {
        direction,
        priority: Priority::Mid,
        verdict: RuleVerdict::Allow,
        protocol: RuleProtocol::Any,
        ports: None,
        icmp: None,
        peer,
    }
}

/// A switch on a bridge, with a guest of the first subnet on each side.
fn joined(switch: &mut Switch, own: &[u32], far: [(u8, u32); 2], other: u8) -> Result<()> {
    let config = switch.config();
    config.vpcs = vec![vpc(VNI)?];
    let group = |id, name: &str, rules| -> Result<SecurityGroup> {
        Ok(SecurityGroup { id: GroupId(id), name: name.parse()?, rules })
    };
    let out = || rule(Direction::Outbound, RulePeer::Any);
    let within = rule(Direction::Inbound, RulePeer::Group(GroupId(1)));
    config.security_groups = vec![
        group(1, "clients", vec![out()])?,
        group(2, "servers", vec![out(), within])?,
        group(3, "others", vec![out()])?,
    ];
    for (port, id) in config.ports.iter_mut().zip(own) {
        port.security_groups = Some(vec![GroupId(*id)]);
    }
    for (host, id) in far {
        switch.add_remote(VNI, mac(16 + host), at(1, host), vtep(other));
        let added = switch.config().remotes.last_mut().context("a remote was added")?;
        added.security_groups = vec![GroupId(id)];
        added.subnet = Some("subnet-1".parse()?);
    }
    Ok(())
}

/// A queue of the wire that is too short for what it is asked to carry.
const NARROW: &str = "tbf rate 40mbit burst 8k limit 12k";

fn lost(wire: &Namespace) -> Result<u64> {
    let text = wire.run("tc -s qdisc show")?;
    let counts = text.split("dropped ").skip(1);
    let counts = counts.filter_map(|rest| rest.split([',', ' ']).next()?.parse::<u64>().ok());
    Ok(counts.sum())
}

/// The guests of the first node are a server and another; those of the second a client and one
/// that is none.
pub(crate) fn groups_over_a_lossy_wire(_length: Length) -> Result<()> {
    let scratch = Scratch::new()?;
    let wire = Namespace::new("w")?;
    wire.run("sysctl -q -w net.ipv6.conf.default.disable_ipv6=1")?;
    let (_node1, mut switch1) = node(&scratch, "n1", 1, (&wire, "w1"))?;
    let (_node2, mut switch2) = node(&scratch, "n2", 2, (&wire, "w2"))?;
    wire.ip("link add br0 type bridge")?;
    for device in ["w1", "w2"] {
        wire.ip(&format!("link set {device} master br0"))?;
    }
    wire.ip("link set br0 up")?;
    let server = guest(&scratch, &mut switch1, "g1", (1, VNI, at(1, 5)))?;
    let _beside = guest(&scratch, &mut switch1, "g2", (2, VNI, at(1, 6)))?;
    let client = guest(&scratch, &mut switch2, "g3", (1, VNI, at(1, 7)))?;
    let other = guest(&scratch, &mut switch2, "g4", (2, VNI, at(1, 8)))?;
    joined(&mut switch1, &[2, 3], [(7, 1), (8, 3)], 2)?;
    joined(&mut switch2, &[1, 3], [(5, 2), (6, 3)], 1)?;
    for switch in [&mut switch1, &mut switch2] {
        switch.apply()?;
        switch.wait_for_guests()?;
    }
    client.reaches(server.address, PATIENCE).context("a client's group is allowed")?;
    let second = Duration::from_secs(1);
    ensure!(other.reaches(server.address, second).is_err(), "another group reaches the server");
    ensure!(switch1.drops("security-group-denied")? > 0, "who was refused was not counted");
    for device in ["w1", "w2"] {
        wire.run(&format!("tc qdisc add dev {device} root {NARROW}"))?;
    }
    for _ in 0..2 {
        let bits = stream(&scratch, &client.namespace, (&server.namespace, server.address), 3)?;
        ensure!(bits > STREAM_LEAST, "a stream of {bits} bits a second");
    }
    let lost = lost(&wire)?;
    ensure!(lost > 20, "the wire lost {lost} packets only");
    // What was lost, came twice and came late was all within its windows.
    let refused = switch1.drops("tcp-out-of-window")? + switch2.drops("tcp-out-of-window")?;
    ensure!(refused == 0, "{refused} segments of an honest stream were refused");
    ensure!(switch1.drops("tcp-no-connection")? == 0, "a connection was forgotten");
    // The group's rule goes, and the client with it.
    switch1.config().security_groups[1].rules.truncate(1);
    switch1.apply()?;
    ensure!(client.reaches(server.address, second).is_err(), "a rule that is gone allows");
    Ok(())
}
