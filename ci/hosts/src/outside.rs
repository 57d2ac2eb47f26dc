// SPDX-License-Identifier: Apache-2.0
//! External addresses and NAT gateways between kernels' stacks.
//!
//! ```text
//!  guests ── switch ── u0 ═ w0 ── carrier (forwards) ── x0 ═ x1 ── web, 192.0.2.80
//! ```
//!
//! The carrier has a route to 198.51.100.0/24 on the line itself and asks for each address by ARP.
//! Nobody but the switch knows of the guests' 10.0.1.0/24.

use crate::network::{VNI, node, vtep};
use crate::vpc::{at, guest, vpc};
use anyhow::{Context, Result, ensure};
use plinth_ids::Vni;
use plinth_stage::capture::Capture;
use plinth_stage::runner::Length;
use plinth_stage::tap_guest::NIC;
use plinth_stage::{Daemon, Namespace, Scratch, Switch, TapGuest, until};
use plinth_switch_api::{
    AddressLimits, Answer, Binding, ExternalAddress, ExternalStatus, Forward, ForwardProtocol,
    Line, Look, NatGateway, NextHop, PortMapping, Route, Serves, Sight, Verb,
};
use std::net::Ipv4Addr;
use std::process::Stdio;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(10);
const WEB: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 80);
const EIP: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
const SHARED: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 9);
const CARRIED: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 20);
/// Far below what any of these paths carries, and far above what a stream does that limps.
const STREAM_LEAST: u64 = 10_000_000;

/// Guest 1 has an external address, guest 2 goes out by the gateway, guest 3 carries an address.
struct Outside {
    // Before the namespaces that they are in.
    guests: [TapGuest; 3],
    switch: Switch,
    web: Namespace,
    carrier: Namespace,
    _node: Namespace,
    scratch: Scratch,
}

impl Outside {
    fn new() -> Result<Self> {
        let scratch = Scratch::new()?;
        let (carrier, web) = (Namespace::new("k")?, Namespace::new("web")?);
        for namespace in [&carrier, &web] {
            namespace.run("sysctl -q -w net.ipv6.conf.all.disable_ipv6=1")?;
        }
        let (node, mut switch) = node(&scratch, "n1", 1, (&carrier, "w0"))?;
        carrier.ip(&format!("address add {}/24 dev w0", vtep(2)))?;
        // As wide as a guest's NIC: what is wider has to be cut before it comes to the node.
        carrier.ip("route add 198.51.100.0/24 dev w0 mtu 1450")?;
        carrier.run("sysctl -q -w net.ipv4.ip_forward=1 net.ipv4.conf.all.send_redirects=0")?;
        // Errors come one by one here, and not one a second.
        carrier.run("sysctl -q -w net.ipv4.icmp_ratelimit=0")?;
        carrier.join("x0", &web, "x1")?;
        carrier.ip("address add 192.0.2.1/24 dev x0")?;
        web.ip(&format!("address add {WEB}/24 dev x1"))?;
        web.ip("route add default via 192.0.2.1")?;
        let guests = [
            guest(&scratch, &mut switch, "g1", (1, VNI, at(1, 5)))?,
            guest(&scratch, &mut switch, "g2", (2, VNI, at(1, 6)))?,
            guest(&scratch, &mut switch, "g3", (3, VNI, at(1, 7)))?,
        ];
        guests[2].namespace.ip(&format!("address add {CARRIED}/32 dev {NIC}"))?;
        Ok(Self { guests, switch, web, carrier, _node: node, scratch })
    }

    fn configure(&mut self) -> Result<()> {
        let vni = Vni::new(VNI).context("24 bits")?;
        let config = self.switch.config();
        config.vpcs = vec![vpc(VNI)?];
        config.vpcs[0].routes =
            vec![Route { destination: "0.0.0.0/0".parse()?, next_hop: NextHop::External }];
        config.ports[2].allowed = vec![format!("{CARRIED}/32").parse()?];
        let line: plinth_ids::Name = "carrier".parse()?;
        let bound = |address, host, binding| ExternalAddress {
            address,
            line: line.clone(),
            vni,
            nic: at(1, host),
            binding,
            limits: AddressLimits::default(),
        };
        let external = &mut config.external;
        external.lines = vec![Line { name: line.clone(), next_hop: vtep(2) }];
        external.addresses =
            vec![bound(EIP, 5, Binding::Translated), bound(CARRIED, 7, Binding::Carried)];
        external.gateways = vec![NatGateway {
            name: "out".parse()?,
            vni,
            line,
            addresses: vec![SHARED],
            ports_per_nic: 1024,
            serves: Serves::Vpc,
            mapping: PortMapping::PerConnection,
            forwards: vec![Forward {
                address: SHARED,
                protocol: ForwardProtocol::Tcp,
                ports: (8000, 8009),
                nic: at(1, 6),
                nic_port: 80,
            }],
        }];
        self.switch.apply()?;
        self.switch.wait_for_guests()
    }

    /// A stream of a second to `to`, which is served at `served` by another port, perhaps.
    fn stream(
        &self,
        from: &Namespace,
        to: (Ipv4Addr, u16),
        (server, port): (&Namespace, u16),
    ) -> Result<()> {
        let mut command = server.command("iperf3");
        command.args(["--server", "--one-off", "--forceflush", "--port", &port.to_string()]);
        let log = self.scratch.join(&format!("iperf-{}-{port}.log", server.name()));
        std::fs::write(&log, "").context("log")?;
        let daemon = Daemon::start("iperf3", command, &log)?;
        until(PATIENCE, "iperf3 listens", || daemon.log().contains("listening"))?;
        let (address, port) = to;
        let line = format!("timeout 20 iperf3 --client {address} --port {port} --time 1 --json");
        let text = from.run(&line)?;
        let sum: serde_json::Value = serde_json::from_str(&text).context("iperf3's JSON")?;
        let bits = sum["end"]["sum_received"]["bits_per_second"].as_f64().unwrap_or_default();
        ensure!(bits > STREAM_LEAST as f64, "{bits} bits a second from {} to {to:?}", from.name());
        Ok(())
    }

    fn counted(&self, address: Ipv4Addr) -> Result<ExternalStatus> {
        let Answer::Sight(Sight::External(list)) = self.switch.call(Verb::Look(Look::External))?
        else {
            anyhow::bail!("the look was answered with something else");
        };
        list.into_iter().find(|one| one.address == address).context("it is not counted")
    }
}

/// What a ping says, whether or not it was answered.
fn said(namespace: &Namespace, line: &str) -> Result<String> {
    let mut command = namespace.command("ping");
    let output = command.args(line.split(' ')).stdin(Stdio::null()).output()?;
    Ok([output.stdout, output.stderr]
        .map(|text| String::from_utf8_lossy(&text).into_owned())
        .concat())
}

/// The frames of a capture, also those of the last second: the kernel hands them on in blocks.
fn frames_of(capture: Capture) -> Result<Vec<Vec<u8>>> {
    std::thread::sleep(Duration::from_millis(1200));
    capture.finish()
}

/// Source and destination of an IPv4 frame.
fn ends(frame: &[u8]) -> Option<(Ipv4Addr, Ipv4Addr)> {
    if frame.get(12..14)? != [8, 0] {
        return None;
    }
    let address = |at: usize| frame.get(at..at + 4)?.first_chunk::<4>().copied();
    Some((address(26)?.into(), address(30)?.into()))
}

/// Whether a frame announces an address (RFC 5227): ARP in which it is asker and asked.
fn announces(frame: &[u8], address: Ipv4Addr) -> bool {
    let [sender, target] = [28..32, 38..42].map(|range| frame.get(range));
    frame.get(12..14) == Some(&[8, 6])
        && sender == Some(&address.octets())
        && target == Some(&address.octets())
        && frame[..6] == [0xff; 6]
}

pub(crate) fn reached(_length: Length) -> Result<()> {
    let mut outside = Outside::new()?;
    let wire = Capture::start(&outside.carrier, "w0", &outside.scratch.join("line.pcap"))?;
    outside.configure()?;
    let [one, two, three] = &outside.guests;
    let (web, carrier) = (&outside.web, &outside.carrier);
    // Out, by the gateway, by an address of one's own and by one that the guest has.
    for guest in [two, one] {
        guest.reaches(WEB, PATIENCE).context("out")?;
        guest.ping(WEB, 20, 56)?;
        outside.stream(&guest.namespace, (WEB, 5201), (web, 5201))?;
    }
    let pinged = said(&three.namespace, &format!("-n -c 3 -i 0.1 -W 2 -I {CARRIED} {WEB}"))?;
    ensure!(pinged.contains(" 0% packet loss"), "{pinged}");
    // In.
    for address in [EIP, CARRIED] {
        let pinged = said(web, &format!("-n -c 10 -i 0.02 -W 2 {address}"))?;
        ensure!(pinged.contains(" 0% packet loss"), "{pinged}");
    }
    outside.stream(web, (EIP, 5202), (&one.namespace, 5202))?;
    outside.stream(web, (SHARED, 8003), (&two.namespace, 83))?;
    // From one guest to the other by what is outside.
    one.ping(CARRIED, 5, 56)?;
    two.ping(EIP, 5, 3000).context("in pieces, both ways")?;
    said(&two.namespace, &format!("-n -c 3 -i 0.1 -W 1 -s 3000 {WEB}"))?;
    outside.stream(&two.namespace, (EIP, 5203), (&one.namespace, 5203))?;
    outside.stream(&one.namespace, (SHARED, 8004), (&two.namespace, 84))?;
    ensure!(carrier.run(&format!("ping -n -c 1 -W 1 {SHARED}")).is_err(), "a gateway is no host");
    let counted = outside.counted(EIP)?;
    ensure!(counted.packets_in > 1000 && counted.packets_out > 1000, "{counted:?}");
    ensure!(counted.bytes_out > 1_000_000 && counted.dropped_out == 0, "{counted:?}");
    let frames = frames_of(wire)?;
    for address in [EIP, SHARED, CARRIED] {
        let count = frames.iter().filter(|frame| announces(frame, address)).count();
        ensure!(count == 2, "{address} was announced {count} times");
    }
    // The web has put pieces together and answers in pieces. Ours from there are joined by the
    // af_packet of the underlay before the switch sees them, and are then too long for a guest.
    let answered = |frame: &&Vec<u8>| {
        ends(frame) == Some((WEB, SHARED)) && frame[20] & 0x20 != 0 && frame[23] == 1
    };
    ensure!(frames.iter().any(|frame| answered(&frame)), "the web answered no ping in pieces");
    let inner = frames.iter().filter_map(|frame| ends(frame)).find(|(source, destination)| {
        [source, destination].iter().any(|address| address.octets()[0] == 10)
    });
    ensure!(inner.is_none(), "an address of the VPC is on the line: {inner:?}");
    Ok(())
}

pub(crate) fn errors(_length: Length) -> Result<()> {
    let mut outside = Outside::new()?;
    outside.configure()?;
    let [one, two, _] = &outside.guests;
    let (web, carrier) = (&outside.web, &outside.carrier);
    for guest in [two, one] {
        guest.reaches(WEB, PATIENCE)?;
        // The switch is the first router on the way, the carrier the second.
        let late = said(&guest.namespace, &format!("-n -c 1 -W 2 -t 2 {WEB}"))?;
        let expected = format!("From {} icmp_seq=1 Time to live exceeded", vtep(2));
        ensure!(late.contains(&expected), "{late}");
    }
    // The way gets narrower behind the carrier, who says so.
    carrier.ip("link set x0 mtu 1300")?;
    web.ip("link set x1 mtu 1300")?;
    for guest in [two, one] {
        let long = said(&guest.namespace, &format!("-n -c 1 -W 2 -M do -s 1400 {WEB}"))?;
        ensure!(long.contains("1300"), "nobody said that 1300 is the most: {long}");
        outside.stream(&guest.namespace, (WEB, 5204), (web, 5204))?;
    }
    // A guest refuses a datagram from outside: the error names the external address.
    let heard = Capture::start(web, "x1", &outside.scratch.join("web.pcap"))?;
    let line = format!("timeout 3 socat -T 1 - UDP:{EIP}:9");
    let mut refused = web.command("sh");
    refused.args(["-c", &format!("echo x | {line}")]).stdin(Stdio::null());
    let _ = refused.stdout(Stdio::null()).stderr(Stdio::null()).status()?;
    let frames = frames_of(heard)?;
    let error = frames.iter().find(|frame| frame.get(23) == Some(&1) && frame.get(34) == Some(&3));
    let error = error.context("nobody told the web that its datagram was refused")?;
    ensure!(ends(error) == Some((EIP, WEB)), "the error is {:?}", ends(error));
    let quoted = error.get(42 + 12..42 + 20).context("a quoted packet")?;
    ensure!(quoted == [WEB.octets(), EIP.octets()].concat(), "it quotes {quoted:?}");
    Ok(())
}

pub(crate) fn unbound(_length: Length) -> Result<()> {
    let mut outside = Outside::new()?;
    outside.configure()?;
    let web = &outside.web;
    let reaches = |address: Ipv4Addr| {
        said(web, &format!("-n -c 2 -i 0.2 -W 1 {address}"))
            .map(|said| said.contains(" 0% packet loss"))
    };
    outside.guests[1].reaches(WEB, PATIENCE)?;
    ensure!(reaches(EIP)?, "before");
    // Guest 2 gets the address of guest 1.
    outside.switch.config.external.addresses[0].nic = at(1, 6);
    outside.switch.apply()?;
    let heard =
        Capture::start(&outside.guests[1].namespace, NIC, &outside.scratch.join("g2.pcap"))?;
    ensure!(reaches(EIP)?, "after it was moved");
    let frames = frames_of(heard)?;
    ensure!(
        frames.iter().filter_map(|frame| ends(frame)).any(|pair| pair == (WEB, at(1, 6))),
        "guest 2 was not the one who answered"
    );
    outside.switch.config.external.addresses.remove(0);
    outside.switch.apply()?;
    ensure!(!reaches(EIP)?, "the address leads somewhere although it is unbound");
    ensure!(outside.switch.drops("underlay-address-foreign")? > 0, "it was not counted");
    outside.guests[0].reaches(WEB, PATIENCE).context("by the gateway then")?;
    Ok(())
}
