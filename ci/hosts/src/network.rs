// SPDX-License-Identifier: Apache-2.0
//! The switch: one node, two nodes, the kernel as the other node, and a crash.

use anyhow::{Context, Result, ensure};
use plinth_ids::MacAddress;
use plinth_stage::capture::{Capture, Vxlan, is_arp};
use plinth_stage::runner::Length;
use plinth_stage::tap_guest::{NIC, stream};
use plinth_stage::{Namespace, Scratch, Switch, TapGuest};
use std::net::Ipv4Addr;
use std::time::Duration;

/// Two VPCs; every address of the first is used in the second as well.
pub(crate) const VNI: u32 = 100;
const OTHER_VNI: u32 = 200;
const PATIENCE: Duration = Duration::from_secs(10);

/// Bits per second below which a stream is broken rather than slow. Speed is for perf/.
const STREAM_LEAST: u64 = 1_000_000;

pub(crate) const fn mac(number: u8) -> MacAddress {
    MacAddress([2, 0, 0, 0, 0, number])
}

pub(crate) const fn address(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 0, number)
}

pub(crate) const fn vtep(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(172, 16, 0, number)
}

pub(crate) const fn vtep_mac(number: u8) -> MacAddress {
    MacAddress([2, 0, 0, 0, 1, number])
}

/// Adds a port with its guest to a switch; the configuration is not applied.
pub(crate) fn guest(
    scratch: &Scratch,
    switch: &mut Switch,
    tag: &str,
    (port, vni, number): (u32, u32, u8),
) -> Result<TapGuest> {
    let socket = switch.add_port(port, vni, mac(number), address(number));
    TapGuest::start(scratch, tag, &socket, mac(number), address(number))
}

pub(crate) fn one_node(_length: Length) -> Result<()> {
    let scratch = Scratch::new()?;
    let mut switch = Switch::start(&scratch, "s", None)?;
    let one = guest(&scratch, &mut switch, "g1", (1, VNI, 1))?;
    let two = guest(&scratch, &mut switch, "g2", (2, VNI, 2))?;
    let other = guest(&scratch, &mut switch, "o2", (3, OTHER_VNI, 2))?;
    switch.apply()?;
    switch.wait_for_guests()?;
    let overheard = Capture::start(&other.namespace, NIC, &scratch.join("other.pcap"))?;
    one.reaches(two.address, PATIENCE)?;
    one.ping(two.address, 50, 56)?;
    // The largest packet that is not cut: MTU 1450 less IPv4 and ICMP headers.
    two.ping(one.address, 20, 1422)?;
    for (from, to) in [(&one, &two), (&two, &one)] {
        let bits = stream(&scratch, &from.namespace, (&to.namespace, to.address), 1)?;
        ensure!(bits > STREAM_LEAST, "a stream of {bits} bits a second");
    }
    // An address that nobody has: the question ends at the switch.
    ensure!(one.reaches(address(77), Duration::from_secs(1)).is_err(), "nobody is 10.0.0.77");
    ensure!(switch.drops("arp-target-unknown")? > 0, "the question was not counted");
    let heard = overheard.finish()?;
    ensure!(heard.is_empty(), "the other VPC heard {} frames: {:02x?}", heard.len(), heard[0]);
    // Nobody in the other VPC has the first guest's address, although it exists next door.
    ensure!(other.reaches(one.address, Duration::from_secs(1)).is_err(), "the VPCs are joined");
    Ok(())
}

/// A namespace with a switch on a veth, whose other end is `wire`.
pub(crate) fn node(
    scratch: &Scratch,
    tag: &str,
    number: u8,
    wire: (&Namespace, &str),
) -> Result<(Namespace, Switch)> {
    let namespace = Namespace::new(tag)?;
    namespace.run("sysctl -q -w net.ipv6.conf.default.disable_ipv6=1")?;
    namespace.join("u0", wire.0, wire.1)?;
    let mut switch = Switch::start(scratch, tag, Some(&namespace))?;
    switch.set_underlay("u0", vtep(number), vtep_mac(number));
    Ok((namespace, switch))
}

/// The kernel's own VXLAN device, in `namespace` on device `wire`, as VTEP 2.
pub(crate) fn kernel_vxlan(namespace: &Namespace, wire: &str, number: u8) -> Result<()> {
    let (own, other) = (vtep(2), vtep(1));
    namespace.ip(&format!("address add {own}/24 dev {wire}"))?;
    namespace.ip(&format!(
        "link add vx0 type vxlan id {VNI} local {own} remote {other} dstport 4789 dev {wire}"
    ))?;
    namespace.ip(&format!("link set vx0 address {} mtu 1450 up", mac(number)))?;
    namespace.ip(&format!("address add {}/24 dev vx0", address(number)))?;
    Ok(())
}

pub(crate) fn kernel_vtep(_length: Length) -> Result<()> {
    let scratch = Scratch::new()?;
    let kernel = Namespace::new("k")?;
    kernel.run("sysctl -q -w net.ipv6.conf.default.disable_ipv6=1")?;
    let (_node, mut switch) = node(&scratch, "n1", 1, (&kernel, "w0"))?;
    kernel_vxlan(&kernel, "w0", 9)?;
    let one = guest(&scratch, &mut switch, "g1", (1, VNI, 1))?;
    let other = guest(&scratch, &mut switch, "o1", (2, OTHER_VNI, 1))?;
    switch.add_remote(VNI, mac(9), address(9), vtep(2));
    switch.apply()?;
    switch.wait_for_guests()?;
    let wire = Capture::start(&kernel, "w0", &scratch.join("wire.pcap"))?;
    let overheard = Capture::start(&other.namespace, NIC, &scratch.join("other.pcap"))?;
    one.reaches(address(9), PATIENCE)?;
    one.ping(address(9), 30, 56)?;
    one.ping(address(9), 10, 1422)?;
    // The kernel asks for the guest's MAC through the tunnel, and is answered by the switch.
    kernel.run("ip neighbor flush dev vx0")?;
    let pinged = kernel.run(&format!("ping -n -c 30 -i 0.02 -W 2 {}", one.address))?;
    ensure!(pinged.contains(" 0% packet loss"), "{pinged}");
    let outward = stream(&scratch, &one.namespace, (&kernel, address(9)), 2)?;
    let inward = stream(&scratch, &kernel, (&one.namespace, one.address), 2)?;
    ensure!(outward.min(inward) > STREAM_LEAST, "streams of {outward} and {inward} bits a second");
    let frames = wire.finish()?;
    check_tunnel(&frames, &[vtep(1), vtep(2)])?;
    let heard = overheard.finish()?;
    ensure!(heard.is_empty(), "the other VPC heard {} frames", heard.len());
    Ok(())
}

/// Holds every VXLAN frame of a capture to RFC 7348 and to the VPC, and wants many from both.
fn check_tunnel(frames: &[Vec<u8>], ends: &[Ipv4Addr; 2]) -> Result<()> {
    let tunnel: Vec<Vxlan> = frames.iter().filter_map(|frame| Vxlan::parse(frame)).collect();
    for frame in &tunnel {
        ensure!(frame.flags == 0x08, "flags {:#04x}: only the VNI bit is to be set", frame.flags);
        ensure!(frame.reserved == [0; 4], "reserved fields are to be zero on send: {frame:?}");
        ensure!(frame.vni == VNI, "VNI {} is not the VPC's", frame.vni);
        ensure!(frame.inner.len() >= 14, "there is no whole Ethernet frame inside");
    }
    for end in ends {
        let from = tunnel.iter().filter(|frame| Ipv4Addr::from(frame.source) == *end);
        let mut ports: Vec<u16> = from.map(|frame| frame.source_port).collect();
        ensure!(ports.len() > 50, "{} frames came from {end}", ports.len());
        ports.sort_unstable();
        ports.dedup();
        ensure!(ports.len() > 1, "all flows of {end} share one source port");
    }
    let naked = frames.iter().filter(|frame| Vxlan::parse(frame).is_none() && !is_arp(frame));
    // Nothing of the tenants is on the wire outside of the tunnel.
    for frame in naked {
        let is_tenants = frame.windows(3).any(|bytes| bytes == [10, 0, 0]);
        ensure!(!is_tenants, "a tenant's packet without tunnel: {frame:02x?}");
    }
    Ok(())
}

pub(crate) fn two_nodes(_length: Length) -> Result<()> {
    let scratch = Scratch::new()?;
    // A bridge between the two, where the capture listens.
    let wire = Namespace::new("w")?;
    wire.run("sysctl -q -w net.ipv6.conf.default.disable_ipv6=1")?;
    let (_node1, mut switch1) = node(&scratch, "n1", 1, (&wire, "w1"))?;
    let (_node2, mut switch2) = node(&scratch, "n2", 2, (&wire, "w2"))?;
    wire.ip("link add br0 type bridge")?;
    wire.ip("link set w1 master br0")?;
    wire.ip("link set w2 master br0")?;
    wire.ip("link set br0 up")?;
    let one = guest(&scratch, &mut switch1, "g1", (1, VNI, 1))?;
    let two = guest(&scratch, &mut switch2, "g2", (1, VNI, 2))?;
    // The same addresses in another VPC, each on the node of the other.
    let other1 = guest(&scratch, &mut switch2, "o1", (2, OTHER_VNI, 1))?;
    let other2 = guest(&scratch, &mut switch1, "o2", (2, OTHER_VNI, 2))?;
    switch1.add_remote(VNI, mac(2), address(2), vtep(2));
    switch2.add_remote(VNI, mac(1), address(1), vtep(1));
    for switch in [&mut switch1, &mut switch2] {
        switch.apply()?;
        switch.wait_for_guests()?;
    }
    let captured = Capture::start(&wire, "br0", &scratch.join("wire.pcap"));
    // A bridge's own device sees only what is flooded; the ports see all.
    drop(captured);
    let captured = Capture::start(&wire, "w1", &scratch.join("wire1.pcap"))?;
    let overheard = [&other1, &other2]
        .map(|guest| Capture::start(&guest.namespace, NIC, &scratch.join(guest.namespace.name())));
    one.reaches(two.address, PATIENCE)?;
    one.ping(two.address, 50, 56)?;
    two.ping(one.address, 20, 1422)?;
    let bits = stream(&scratch, &one.namespace, (&two.namespace, two.address), 1)?;
    ensure!(bits > STREAM_LEAST, "a stream of {bits} bits a second");
    let bits = stream(&scratch, &two.namespace, (&one.namespace, one.address), 1)?;
    ensure!(bits > STREAM_LEAST, "a stream of {bits} bits a second");
    check_tunnel(&captured.finish()?, &[vtep(1), vtep(2)])?;
    for capture in overheard {
        let heard = capture?.finish()?;
        ensure!(heard.is_empty(), "the other VPC heard {} frames", heard.len());
    }
    Ok(())
}

pub(crate) fn killed_switch(_length: Length) -> Result<()> {
    let scratch = Scratch::new()?;
    let mut switch = Switch::start(&scratch, "s", None)?;
    let mut one = guest(&scratch, &mut switch, "g1", (1, VNI, 1))?;
    let two = guest(&scratch, &mut switch, "g2", (2, VNI, 2))?;
    switch.apply()?;
    switch.wait_for_guests()?;
    for round in 0..3 {
        one.reaches(two.address, PATIENCE).with_context(|| format!("round {round}"))?;
        one.ping(two.address, 10, 56)?;
        switch.kill()?;
        ensure!(
            one.reaches(two.address, Duration::from_secs(1)).is_err(),
            "somebody forwards although the switch is dead"
        );
        one.check()?;
        // Nobody tells it anything: it goes by the configuration that it kept.
        switch.start_again()?;
        switch.wait_for_guests()?;
    }
    one.reaches(two.address, PATIENCE)?;
    one.ping(two.address, 10, 56)
}
