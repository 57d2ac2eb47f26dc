// SPDX-License-Identifier: Apache-2.0
//! The switch under guests' real drivers.

use crate::vm::{Parts, Vm};
use anyhow::{Context, Result, bail, ensure};
use plinth_ids::MacAddress;
use plinth_stage::capture::{Capture, Vxlan, is_arp};
use plinth_stage::runner::Length;
use plinth_stage::tap_guest::NIC;
use plinth_stage::{Namespace, Scratch, Switch, TapGuest, within};
use std::net::Ipv4Addr;
use std::time::Duration;

const VNI: u32 = 100;
const OTHER_VNI: u32 = 200;
const PATIENCE: Duration = Duration::from_secs(30);

const fn mac(number: u8) -> MacAddress {
    MacAddress([2, 0, 0, 0, 0, number])
}

const fn address(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 0, number)
}

/// A guest on a port of `switch`, which knows of the port already.
fn guest(scratch: &Scratch, switch: &Switch, port: usize, number: u8) -> Result<Vm> {
    let socket = switch.config.ports[port].socket.clone();
    let nics = vec![(socket, mac(number), address(number))];
    Vm::start(scratch, number.into(), Parts { nics, ..Parts::default() })
}

fn reaches(vm: &mut Vm, to: Ipv4Addr) -> Result<()> {
    within(PATIENCE, "a guest's ping is answered", || {
        vm.agent.check(&format!("ping -c 1 -W 2 {to}")).map(drop).context("ping")
    })
}

/// Every ping must be answered.
fn pings(vm: &mut Vm, to: Ipv4Addr, size: u32) -> Result<()> {
    let output = vm.agent.check(&format!("ping -c 10 -W 5 -s {size} {to}"))?;
    if output.contains(" 0% packet loss") { Ok(()) } else { bail!("pings were lost:\n{output}") }
}

/// A TCP stream of the guests' own offloads: 64 KiB packets on one node.
fn streams(from: &mut Vm, to: &mut Vm, address: Ipv4Addr) -> Result<()> {
    to.agent.check("iperf3 -s -1 -D && sleep 0.5")?;
    let text = from.agent.check(&format!("iperf3 -c {address} -t 2 -J"))?;
    ensure!(text.contains("\"sum_received\"") && !text.contains("\"error\""), "iperf3: {text}");
    Ok(())
}

pub(crate) fn one_node(_length: Length) -> Result<()> {
    let scratch = Scratch::new()?;
    let mut switch = Switch::start(&scratch, "s", None)?;
    switch.add_port(1, VNI, mac(1), address(1));
    switch.add_port(2, VNI, mac(2), address(2));
    let socket = switch.add_port(3, OTHER_VNI, mac(2), address(2));
    switch.apply()?;
    let other = TapGuest::start(&scratch, "o2", &socket, mac(2), address(2))?;
    let overheard = Capture::start(&other.namespace, NIC, &scratch.join("other.pcap"))?;
    let mut one = guest(&scratch, &switch, 0, 1)?;
    let mut two = guest(&scratch, &switch, 1, 2)?;
    reaches(&mut one, address(2))?;
    pings(&mut one, address(2), 56)?;
    pings(&mut two, address(1), 1400)?;
    streams(&mut one, &mut two, address(2))?;
    streams(&mut two, &mut one, address(1))?;
    // A ping that runs through the switch's death, and says itself when it goes on.
    one.agent.check(&format!("(ping -i 0.2 {} >/run/ping 2>&1 &) ; sleep 1", address(2)))?;
    switch.kill()?;
    let before: u64 = answered(&mut one)?;
    std::thread::sleep(Duration::from_secs(1));
    switch.start_again()?;
    within(PATIENCE, "the ping resumes by itself", || {
        let now = answered(&mut one)?;
        if now > before + 3 { Ok(()) } else { bail!("{now} answers, {before} before the kill") }
    })?;
    one.agent.check("killall ping")?;
    pings(&mut two, address(1), 56)?;
    let heard = overheard.finish()?;
    ensure!(heard.is_empty(), "the other VPC heard {} frames", heard.len());
    ensure!(one.is_alive() && two.is_alive(), "a QEMU ended");
    Ok(())
}

fn answered(vm: &mut Vm) -> Result<u64> {
    let count = vm.agent.check("grep -c 'bytes from' /run/ping || true")?;
    count.trim().parse().with_context(|| format!("{count:?} is no count"))
}

pub(crate) fn two_nodes(_length: Length) -> Result<()> {
    let scratch = Scratch::new()?;
    let (left, right) = (Namespace::new("l")?, Namespace::new("r")?);
    for namespace in [&left, &right] {
        namespace.run("sysctl -q -w net.ipv6.conf.default.disable_ipv6=1")?;
    }
    left.join("u0", &right, "u0")?;
    let vtep = |number| Ipv4Addr::new(172, 16, 0, number);
    let mut switches = Vec::new();
    for (number, namespace) in [(1, &left), (2, &right)] {
        let mut switch = Switch::start(&scratch, &format!("s{number}"), Some(namespace))?;
        switch.set_underlay("u0", vtep(number), MacAddress([2, 0, 0, 0, 1, number]));
        let other = 3 - number;
        switch.add_port(1, VNI, mac(number), address(number));
        switch.add_remote(VNI, mac(other), address(other), vtep(other));
        // The other guest's addresses, in another VPC, on this node.
        switch.add_port(2, OTHER_VNI, mac(other), address(other));
        switch.apply()?;
        switches.push(switch);
    }
    let socket = switches[0].config.ports[1].socket.clone();
    let other = TapGuest::start(&scratch, "o2", &socket, mac(2), address(2))?;
    let overheard = Capture::start(&other.namespace, NIC, &scratch.join("other.pcap"))?;
    let wire = Capture::start(&left, "u0", &scratch.join("wire.pcap"))?;
    let mut one = guest(&scratch, &switches[0], 0, 1)?;
    let mut two = guest(&scratch, &switches[1], 0, 2)?;
    reaches(&mut one, address(2))?;
    pings(&mut one, address(2), 56)?;
    pings(&mut two, address(1), 1400)?;
    streams(&mut one, &mut two, address(2))?;
    let frames = wire.finish()?;
    let tunnel: Vec<Vxlan> = frames.iter().filter_map(|frame| Vxlan::parse(frame)).collect();
    ensure!(tunnel.len() > 50, "{} frames in the tunnel", tunnel.len());
    for frame in &tunnel {
        let is_ours = frame.vni == VNI && frame.flags == 0x08 && frame.reserved == [0; 4];
        ensure!(is_ours, "not a frame of RFC 7348 with the VPC's VNI: {frame:02x?}");
    }
    let heard = overheard.finish()?;
    let arps = heard.iter().filter(|frame| is_arp(frame)).count();
    ensure!(heard.is_empty(), "the other VPC heard {} frames, {arps} of ARP", heard.len());
    Ok(())
}
