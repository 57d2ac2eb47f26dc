// SPDX-License-Identifier: Apache-2.0
//! Routing between subnets, and security groups, seen from the kernel's stack.

use crate::network::{VNI, mac};
use anyhow::{Context, Result, bail, ensure};
use plinth_ids::{GroupId, MacAddress, Vni};
use plinth_stage::runner::Length;
use plinth_stage::tap_guest::NIC;
use plinth_stage::{Scratch, Switch, TapGuest};
use plinth_switch_api::{
    Direction, Priority, Rule, RulePeer, RuleProtocol, RuleVerdict, SecurityGroup, Subnet,
    SubnetPrefix, Vpc,
};
use std::net::{IpAddr, Ipv4Addr};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

const OTHER_VNI: u32 = 200;
const PATIENCE: Duration = Duration::from_secs(10);
const ROUTER: MacAddress = MacAddress([2, 0x52, 0, 0, 0, 1]);
/// How soon a changed rule is in force.
const CUT: Duration = Duration::from_millis(100);

pub(crate) const fn at(subnet: u8, host: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, subnet, host)
}

pub(crate) fn vpc(vni: u32) -> Result<Vpc> {
    let subnet = |number: u8| -> Result<Subnet> {
        let gateway = IpAddr::V4(at(number, 1));
        let prefix = format!("10.0.{number}.0/24").parse()?;
        let name = format!("subnet-{number}").parse()?;
        Ok(Subnet { name, prefixes: vec![SubnetPrefix { prefix, gateway }] })
    };
    Ok(Vpc {
        vni: Vni::new(vni).context("24 bits")?,
        name: format!("vpc-{vni}").parse()?,
        router_mac: ROUTER,
        subnets: vec![subnet(1)?, subnet(2)?],
        routes: Vec::new(),
    })
}

/// A guest of a subnet whose default route is the gateway.
pub(crate) fn guest(
    scratch: &Scratch,
    switch: &mut Switch,
    tag: &str,
    (port, vni, address): (u32, u32, Ipv4Addr),
) -> Result<TapGuest> {
    let [_, _, subnet, host] = address.octets();
    let mac = mac(subnet * 16 + host);
    let socket = switch.add_port(port, vni, mac, address);
    let added = switch.config().ports.last_mut().context("a port was added")?;
    added.subnet = Some(format!("subnet-{subnet}").parse()?);
    let guest = TapGuest::start(scratch, tag, &socket, mac, address)?;
    guest.namespace.ip(&format!("route add default via {} dev {NIC}", at(subnet, 1)))?;
    Ok(guest)
}

pub(crate) fn routed(_length: Length) -> Result<()> {
    let scratch = Scratch::new()?;
    let mut switch = Switch::start(&scratch, "s", None)?;
    let one = guest(&scratch, &mut switch, "g1", (1, VNI, at(1, 5)))?;
    let two = guest(&scratch, &mut switch, "g2", (2, VNI, at(2, 6)))?;
    let other = guest(&scratch, &mut switch, "o1", (3, OTHER_VNI, at(1, 5)))?;
    // The same address as `two`, and one that only the other VPC has.
    let _twin = guest(&scratch, &mut switch, "o2", (4, OTHER_VNI, at(2, 7)))?;
    switch.config().vpcs = vec![vpc(VNI)?, vpc(OTHER_VNI)?];
    switch.apply()?;
    switch.wait_for_guests()?;
    one.reaches(two.address, PATIENCE)?;
    one.ping(two.address, 30, 56)?;
    two.ping(one.address, 10, 1422)?;
    one.ping(at(1, 1), 5, 56).context("the gateway answers")?;
    let said = one.namespace.run(&format!("ping -n -c 1 -W 2 {}", two.address))?;
    ensure!(said.contains("ttl=63"), "one router is on the way: {said}");
    let second = Duration::from_secs(1);
    ensure!(other.reaches(at(2, 6), second).is_err(), "a NIC of the other VPC was reached");
    ensure!(one.reaches(at(2, 7), second).is_err(), "the VPCs are joined");
    other.reaches(at(2, 7), PATIENCE).context("the other VPC's own NIC")?;
    Ok(())
}

fn rule(direction: Direction, protocol: RuleProtocol, port: Option<u16>) -> Rule {
    Rule {
        direction,
        priority: Priority::Mid,
        verdict: RuleVerdict::Allow,
        protocol,
        ports: port.map(|port| (port, port)),
        icmp: None,
        peer: RulePeer::Any,
    }
}

fn server(guest: &TapGuest) -> Result<Child> {
    let mut command = guest.namespace.command("iperf3");
    command.args(["-s", "-1", "-p", "5201"]).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().context("iperf3 -s")
}

/// Bytes that the guest's kernel has received.
fn received(guest: &TapGuest) -> Result<u64> {
    let text = guest.namespace.run(&format!("cat /sys/class/net/{NIC}/statistics/rx_bytes"))?;
    text.trim().parse().context("a count of bytes")
}

pub(crate) fn rules(_length: Length) -> Result<()> {
    let scratch = Scratch::new()?;
    let mut switch = Switch::start(&scratch, "s", None)?;
    let one = guest(&scratch, &mut switch, "g1", (1, VNI, at(1, 5)))?;
    let two = guest(&scratch, &mut switch, "g2", (2, VNI, at(2, 6)))?;
    let out = rule(Direction::Outbound, RuleProtocol::Any, None);
    let stream = rule(Direction::Inbound, RuleProtocol::Tcp, Some(5201));
    let group = |id, name: &str, rules| -> Result<SecurityGroup> {
        Ok(SecurityGroup { id: GroupId(id), name: name.parse()?, rules })
    };
    let config = switch.config();
    config.vpcs = vec![vpc(VNI)?];
    config.security_groups =
        vec![group(1, "client", vec![out])?, group(2, "server", vec![stream])?];
    config.ports[0].security_groups = Some(vec![GroupId(1)]);
    config.ports[1].security_groups = Some(vec![GroupId(2)]);
    switch.apply()?;
    switch.wait_for_guests()?;
    let second = Duration::from_secs(1);
    ensure!(one.reaches(two.address, second).is_err(), "ping is allowed by no rule");
    ensure!(switch.drops("security-group-denied")? > 0, "the ping was not counted");
    let ping = rule(Direction::Inbound, RuleProtocol::Icmp, None);
    switch.config().security_groups[1].rules.push(ping);
    switch.apply()?;
    one.reaches(two.address, PATIENCE).context("ping after a rule allows it")?;
    ensure!(two.reaches(one.address, second).is_err(), "the server may open nothing");

    let mut served = server(&two)?;
    std::thread::sleep(Duration::from_millis(300));
    let mut command = one.namespace.command("iperf3");
    command.args(["-c", &two.address.to_string(), "-p", "5201", "-t", "20", "-b", "20M"]);
    let mut client = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    let result = cut(&mut switch, &two);
    for child in [&mut client, &mut served] {
        let _ = child.kill();
        let _ = child.wait();
    }
    result
}

/// Waits for the stream, takes its rule away, and wants silence from then on.
fn cut(switch: &mut Switch, two: &TapGuest) -> Result<()> {
    let start = Instant::now();
    let before = received(two)?;
    while received(two)? < before + 1_000_000 {
        if start.elapsed() > PATIENCE {
            bail!("no stream through the rule that allows it");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    switch.config().security_groups[1].rules.remove(0);
    switch.apply()?;
    std::thread::sleep(CUT);
    let cut = received(two)?;
    std::thread::sleep(Duration::from_millis(500));
    let after = received(two)?;
    ensure!(after == cut, "{} bytes came after the rule was gone", after - cut);
    Ok(())
}
