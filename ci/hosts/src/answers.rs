// SPDX-License-Identifier: Apache-2.0
//! DHCP, router advertisements and DNS, as a kernel's stack and busybox's clients see them.

use crate::network::VNI;
use crate::vpc::{at, guest, vpc};
use anyhow::{Context, Result, ensure};
use plinth_ids::{MacAddress, Vni};
use plinth_stage::runner::Length;
use plinth_stage::tap_guest::NIC;
use plinth_stage::{Scratch, Switch, TapGuest, within};
use plinth_switch_api::{HostName, SubnetDhcp, SubnetPrefix, VpcDns};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

const OTHER_VNI: u32 = 200;
const PATIENCE: Duration = Duration::from_secs(20);
/// What the name server elsewhere says of every name.
const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 99);

/// The address that a guest makes of its MAC in `fd00:1::/64`.
fn own_ipv6(mac: MacAddress) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac.0;
    let host = u64::from_be_bytes([a ^ 2, b, c, 0xff, 0xfe, d, e, f]);
    Ipv6Addr::from_bits(0xfd00_0001 << 96 | u128::from(host))
}

/// How many addresses names that begin with `many` have: more than fit an answer over UDP.
const MANY: u8 = 100;

/// A name server of the node's own network, over UDP and TCP. It ends with the test's process.
fn name_server() -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").context("a socket for names over TCP")?;
    let address = listener.local_addr()?;
    let socket = UdpSocket::bind(address).context("a socket for names")?;
    std::thread::spawn(move || {
        let mut bytes = [0; 1500];
        while let Ok((length, asker)) = socket.recv_from(&mut bytes) {
            if let Some(answer) = response(&bytes[..length]) {
                let _ = socket.send_to(&answer, asker);
            }
        }
    });
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut length = [0; 2];
            let Ok(()) = stream.read_exact(&mut length) else { continue };
            let mut asked = vec![0; usize::from(u16::from_be_bytes(length))];
            let Ok(()) = stream.read_exact(&mut asked) else { continue };
            let Some(answer) = response(&asked) else { continue };
            let length = u16::try_from(answer.len()).unwrap_or(0);
            let _ = stream.write_all(&[&length.to_be_bytes(), &answer[..]].concat());
        }
    });
    Ok(address)
}

/// The header and the question, with [`ELSEWHERE`] as the answer, or with many addresses.
fn response(asked: &[u8]) -> Option<Vec<u8>> {
    let labels = asked.get(12..)?;
    let end = 12 + labels.iter().position(|byte| *byte == 0)? + 5;
    let mut answer = asked.get(..end)?.to_vec();
    let count = if labels.starts_with(b"\x04many") { MANY } else { 1 };
    answer[2] |= 0x80;
    answer[4..12].copy_from_slice(&[0, 1, 0, count, 0, 0, 0, 0]);
    for nth in 0..count {
        // The question's name, A, IN, 5 s.
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 5, 0, 4]);
        let [a, b, c, d] = ELSEWHERE.octets();
        answer.extend([a, b, c, d - nth]);
    }
    Some(answer)
}

/// Both VPCs have guests of the same addresses; in the first, names are told, and asked upstream.
fn configure(switch: &mut Switch, upstream: SocketAddr) -> Result<Ipv6Addr> {
    let (vni, other) = (Vni::new(VNI).context("24 bits")?, Vni::new(OTHER_VNI).context("24 bits")?);
    let config = switch.config();
    config.vpcs = vec![vpc(VNI)?, vpc(OTHER_VNI)?];
    let range = SubnetPrefix { prefix: "fd00:1::/64".parse()?, gateway: "fd00:1::1".parse()? };
    config.vpcs[0].subnets[0].prefixes.push(range);
    let own = own_ipv6(config.ports[0].mac);
    config.ports[0].addresses.push(own.into());
    let dhcp = |vni| -> Result<SubnetDhcp> {
        Ok(SubnetDhcp {
            vni,
            subnet: "subnet-1".parse()?,
            lease_seconds: 600,
            dns: Vec::new(),
            domain: None,
            routes: Vec::new(),
            ntp: Vec::new(),
        })
    };
    config.answers.dhcp = vec![dhcp(vni)?, dhcp(other)?];
    let zone = |text: &str| text.to_owned();
    config.answers.dns = vec![
        VpcDns { vni, zone: zone("shop.internal"), upstreams: vec![upstream] },
        VpcDns { vni: other, zone: zone("other.internal"), upstreams: Vec::new() },
    ];
    let named = [(0, vni, "web"), (1, vni, "db"), (2, other, "secret")];
    for (place, vni, name) in named {
        let mac = config.ports[place].mac;
        config.answers.names.push(HostName { vni, mac, name: name.parse()? });
    }
    switch.apply()?;
    switch.wait_for_guests()?;
    Ok(own)
}

/// Has busybox's client ask for a lease; gives what it was told, as `name=value` lines.
fn lease(scratch: &Scratch, guest: &TapGuest, tag: &str) -> Result<String> {
    let (script, told) = (scratch.join(&format!("{tag}.sh")), scratch.join(&format!("{tag}.env")));
    let text = format!("#!/bin/sh\n[ \"$1\" != bound ] || env > {}\n", told.display());
    std::fs::write(&script, text).context("the client's script")?;
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755))?;
    guest.namespace.ip(&format!("address flush dev {NIC}"))?;
    let line = format!("busybox udhcpc -i {NIC} -n -q -f -t 5 -T 1 -s {}", script.display());
    guest.namespace.run(&line)?;
    std::fs::read_to_string(&told).context("the client was told nothing")
}

fn resolve(guest: &TapGuest, name: &str) -> String {
    // It fails where a name is not told, and says so in its output or not at all.
    let line = format!("timeout 8 busybox nslookup -type=a {name} {}", at(1, 1));
    guest.namespace.run(&line).unwrap_or_default()
}

pub(crate) fn leases_and_names(_length: Length) -> Result<()> {
    let scratch = Scratch::new()?;
    let mut switch = Switch::start(&scratch, "s", None)?;
    let web = guest(&scratch, &mut switch, "g1", (1, VNI, at(1, 5)))?;
    let db = guest(&scratch, &mut switch, "g2", (2, VNI, at(1, 6)))?;
    let other = guest(&scratch, &mut switch, "o1", (3, OTHER_VNI, at(1, 7)))?;
    let own = configure(&mut switch, name_server()?)?;
    let told = lease(&scratch, &web, "web")?;
    for line in [
        "ip=10.0.1.5",
        "mask=24",
        "router=10.0.1.1",
        "dns=10.0.1.1",
        "lease=600",
        "serverid=10.0.1.1",
        "domain=shop.internal",
        "hostname=web",
        "mtu=1450",
    ] {
        // busybox asks for neither MTU nor more than it names, and is told all the same.
        ensure!(told.lines().any(|said| said == line), "{line} is not in:\n{told}");
    }
    let told = lease(&scratch, &other, "other")?;
    ensure!(told.contains("ip=10.0.1.7\n") && told.contains("domain=other.internal\n"), "{told}");
    for (guest, address) in [(&web, at(1, 5)), (&other, at(1, 7))] {
        guest.namespace.ip(&format!("address add {address}/24 dev {NIC}"))?;
    }
    let says = |guest: &TapGuest, name: &str, address: Ipv4Addr| {
        resolve(guest, name).contains(&format!("Address: {address}\n"))
    };
    ensure!(says(&web, "db.shop.internal", at(1, 6)), "{}", resolve(&web, "db.shop.internal"));
    ensure!(says(&db, "www.example.org", ELSEWHERE), "{}", resolve(&db, "www.example.org"));
    ensure!(says(&other, "secret.other.internal", at(1, 7)), "the other VPC has names too");
    for name in ["db.shop.internal", "db.other.internal", "www.example.org"] {
        let text = resolve(&other, name);
        ensure!(!text.contains("Address: 10.0.1.6") && !text.contains("192.0.2.99"), "{text}");
    }
    advertised(&web, own)?;
    // With an address that is not its own, a guest is told nothing.
    db.namespace.ip(&format!("address flush dev {NIC}"))?;
    db.namespace.ip(&format!("address add 10.0.1.77/24 dev {NIC}"))?;
    let text = resolve(&db, "web.shop.internal");
    ensure!(!text.contains("10.0.1.5"), "a forged source was answered: {text}");
    Ok(())
}

/// What dig says of a name, asked at the gateway; one line for each address.
fn dig(guest: &TapGuest, options: &str, name: &str) -> Result<Vec<String>> {
    let line = format!("dig @{} +short +time=3 +tries=2 {options} {name}", at(1, 1));
    Ok(guest.namespace.run(&line)?.lines().map(str::to_owned).collect())
}

/// ISC's clients for names and leases, whose guests are in two VPCs with equal names and addresses.
pub(crate) fn other_clients(_length: Length) -> Result<()> {
    let scratch = Scratch::new()?;
    let mut switch = Switch::start(&scratch, "s", None)?;
    let web = guest(&scratch, &mut switch, "g1", (1, VNI, at(1, 5)))?;
    let _db = guest(&scratch, &mut switch, "g2", (2, VNI, at(1, 6)))?;
    let other = guest(&scratch, &mut switch, "o1", (3, OTHER_VNI, at(1, 5)))?;
    configure(&mut switch, name_server()?)?;
    within(PATIENCE, "names are told", || {
        let told = dig(&web, "+notcp", "db.shop.internal")?;
        ensure!(told == ["10.0.1.6"], "{told:?}");
        Ok(())
    })?;
    for option in ["+notcp", "+tcp"] {
        for (name, address) in [("db.shop.internal", at(1, 6)), ("www.example.org", ELSEWHERE)] {
            let told = dig(&web, option, name)?;
            ensure!(told == [address.to_string()], "{option} {name}: {told:?}");
        }
        let told = dig(&web, option, "-x 10.0.1.6")?;
        ensure!(told == ["db.shop.internal."], "{option}: {told:?}");
        let told = dig(&other, option, "db.shop.internal")?;
        ensure!(told.is_empty(), "a name of another VPC: {told:?}");
    }
    // Cut over UDP, which is said, and then asked for over TCP.
    let cut = dig(&web, "+notcp +ignore", "many.example.org")?;
    ensure!(cut.is_empty(), "an answer that is too long is cut: {cut:?}");
    for option in ["+notcp", "+tcp"] {
        let told = dig(&web, option, "many.example.org")?;
        ensure!(told.len() == usize::from(MANY), "{option}: {} addresses", told.len());
    }
    dhclient(&scratch, &web)
}

/// ISC's client takes what it is given, and the MTU of a network in VXLAN with it.
fn dhclient(scratch: &Scratch, guest: &TapGuest) -> Result<()> {
    let (script, told) = (scratch.join("dhclient.sh"), scratch.join("dhclient.env"));
    let text = format!("#!/bin/sh\n[ \"$reason\" != BOUND ] || env > {}\n", told.display());
    std::fs::write(&script, text).context("the client's script")?;
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755))?;
    guest.namespace.ip(&format!("address flush dev {NIC}"))?;
    let file = |name: &str| scratch.join(name).display().to_string();
    let run = |options: &str| {
        let files = format!("-lf {} -pf {}", file("leases"), file("dhclient.pid"));
        guest
            .namespace
            .run(&format!("dhclient -4 {options} {files} -sf {} {NIC}", script.display()))
    };
    let wanted = "request subnet-mask, routers, interface-mtu, domain-name-servers, host-name;\n";
    std::fs::write(file("dhclient.conf"), wanted).context("the client's configuration")?;
    run(&format!("-1 -cf {}", file("dhclient.conf")))?;
    let told = std::fs::read_to_string(&told).context("the client was told nothing");
    // It stays behind to renew its lease; it leaves without a word to the network.
    run("-x")?;
    let told = told?;
    for line in [
        "new_ip_address=10.0.1.5",
        "new_subnet_mask=255.255.255.0",
        "new_routers=10.0.1.1",
        "new_interface_mtu=1450",
        "new_domain_name_servers=10.0.1.1",
        "new_host_name=web",
    ] {
        ensure!(told.lines().any(|said| said == line), "{line} is not in:\n{told}");
    }
    Ok(())
}

/// The kernel makes the assigned address of what the router says, and takes it for its gateway.
fn advertised(guest: &TapGuest, own: Ipv6Addr) -> Result<()> {
    let run = |line: &str| guest.namespace.run(line);
    run(&format!("sysctl -q -w net.ipv6.conf.{NIC}.accept_ra=2"))?;
    run(&format!("sysctl -q -w net.ipv6.conf.{NIC}.disable_ipv6=0"))?;
    within(PATIENCE, "the kernel has its address of IPv6", || {
        let text = guest.namespace.ip(&format!("-6 address show dev {NIC}"))?;
        ensure!(text.contains(&format!("{own}/64")) && !text.contains("tentative"), "{text}");
        let text = guest.namespace.ip("-6 route show default")?;
        ensure!(text.contains("via fe80::"), "no default route: {text}");
        Ok(())
    })?;
    run("ping -n -6 -c 1 -W 2 fd00:1::1").map(drop)
}
