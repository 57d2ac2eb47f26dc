// SPDX-License-Identifier: Apache-2.0
//! Hostile input at the level of processes: each is refused by name, and others are served on.

use crate::disk::{MIB, verifier};
use crate::network::{VNI, address, guest, kernel_vxlan, mac, node, vtep};
use anyhow::{Context, Result, bail, ensure};
use plinth_stage::daemon::output;
use plinth_stage::runner::Length;
use plinth_stage::tap_guest::NIC;
use plinth_stage::{Namespace, Scratch, Store, Switch, within};
use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(10);

/// Sends one UDP datagram from `namespace`, the payload as hex digits.
fn datagram(namespace: &Namespace, to: &str, hex: &str) -> Result<()> {
    let escaped: String = hex
        .as_bytes()
        .chunks(2)
        .map(|pair| format!("\\x{}", String::from_utf8_lossy(pair)))
        .collect();
    let script = format!("printf '{escaped}' > /dev/udp/{to}");
    output(namespace.command("bash").args(["-c", &script])).map(drop)
}

pub(crate) fn lying_packets(_length: Length) -> Result<()> {
    let scratch = Scratch::new()?;
    let kernel = Namespace::new("k")?;
    kernel.run("sysctl -q -w net.ipv6.conf.default.disable_ipv6=1")?;
    let (_node, mut switch) = node(&scratch, "n1", 1, (&kernel, "w0"))?;
    kernel_vxlan(&kernel, "w0", 9)?;
    let one = guest(&scratch, &mut switch, "g1", (1, VNI, 1))?;
    switch.add_remote(VNI, mac(9), address(9), vtep(2));
    switch.apply()?;
    switch.wait_for_guests()?;
    one.reaches(address(9), PATIENCE)?;
    let ethernet = "0200000000010200000000090800";
    let header = |flags: &str, vni: &str| format!("{flags}000000{vni}00");
    // An IPv4 header that claims 1000 bytes in a frame that has twenty.
    let lying = "450003e800000000401100000a0000090a000001";
    let cases = [
        ("vxlan-invalid", header("00", "000064") + ethernet + lying),
        ("vni-unknown", header("08", "0003e7") + ethernet + lying),
        ("truncated", header("08", "000064") + "020000"),
        ("truncated", header("08", "000064") + ethernet + lying),
        ("truncated", header("08", "000064") + ethernet + "45000014"),
    ];
    for (reason, payload) in &cases {
        let before = switch.drops(reason)?;
        datagram(&kernel, &format!("{}/4789", vtep(1)), payload)?;
        within(PATIENCE, &format!("{payload} is counted as {reason}"), || {
            let now = switch.drops(reason)?;
            if now > before { Ok(()) } else { bail!("{reason} stays at {now}") }
        })?;
    }
    datagram(&kernel, &format!("{}/9", vtep(1)), "00")?;
    switch.daemon().check()?;
    one.ping(address(9), 10, 56)
}

pub(crate) fn spoofing_guest(_length: Length) -> Result<()> {
    let scratch = Scratch::new()?;
    let mut switch = Switch::start(&scratch, "s", None)?;
    let one = guest(&scratch, &mut switch, "g1", (1, VNI, 1))?;
    let two = guest(&scratch, &mut switch, "g2", (2, VNI, 2))?;
    switch.apply()?;
    switch.wait_for_guests()?;
    one.reaches(two.address, PATIENCE)?;
    // An address that is another guest's, or nobody's.
    one.namespace.ip(&format!("address add 10.0.0.66/24 dev {NIC}"))?;
    let ping = format!("ping -n -c 2 -i 0.1 -W 1 -I 10.0.0.66 {}", two.address);
    ensure!(one.namespace.run(&ping).is_err(), "a spoofed source was answered");
    ensure!(switch.drops("source-address-spoofed")? > 0, "it was not counted");
    one.namespace.ip(&format!("link set {NIC} address 02:00:00:00:00:66"))?;
    ensure!(one.reaches(two.address, Duration::from_secs(1)).is_err(), "a spoofed MAC passed");
    ensure!(switch.drops("source-mac-spoofed")? > 0, "it was not counted");
    one.namespace.ip(&format!("link set {NIC} address {}", mac(1)))?;
    one.namespace.ip(&format!("address delete 10.0.0.66/24 dev {NIC}"))?;
    one.reaches(two.address, PATIENCE)
}

pub(crate) fn superblock(_length: Length) -> Result<()> {
    let scratch = Scratch::new()?;
    let mut store = Store::start(&scratch, "b")?;
    let bad = store.make_pool(1, 256 * MIB)?;
    store.make_pool(2, 256 * MIB)?;
    let good = store.make_volume(2, 1, 64 * MIB, 2)?;
    store.daemon().stop()?;
    // Every copy: the first mebibyte and the last.
    let file = OpenOptions::new().write(true).open(&bad).context("pool file")?;
    let garbage: Vec<u8> = (0..MIB).map(|at| u8::try_from(at * 31 % 251).unwrap_or(0)).collect();
    file.write_all_at(&garbage, 0)?;
    let length = file.metadata()?.len();
    file.write_all_at(&garbage, length - MIB)?;
    // Returns when the good pool is in service.
    store.start_again()?;
    let text = within(PATIENCE, "the corrupted pool names its fault", || {
        let pools = store.pools()?;
        let pool = pools.iter().find(|pool| pool.id.0 == 1).context("the pool is not listed")?;
        let fault = pool.fault.clone().context("the corrupted pool has no fault")?;
        ensure!(fault.contains("superblock"), "{fault}");
        Ok(fault)
    })?;
    println!("   the corrupted pool says: {text}");
    let mut verify = verifier(&scratch, &good, Duration::from_secs(2))?;
    let status = verify.wait(Duration::from_secs(30))?;
    ensure!(status.success(), "the good pool's volume:\n{}", verify.log());
    store.daemon().check()
}

/// Bytes that are no request: the connection hears a refusal or is closed, others are served.
fn nonsense(socket: &Path) -> Result<()> {
    let long = [b'x'; 4096].repeat(1024);
    let lines: [&[u8]; 6] = [
        b"\n",
        b"not JSON\n",
        b"{\"id\":1,\"verb\":{\"apply\":{\"version\":99}}}\n",
        b"{\"id\":1,\"verb\":\"no-such-verb\"}\n",
        b"\xff\xfe\x00\x01\n",
        &long,
    ];
    for line in lines {
        let mut stream = UnixStream::connect(socket).context("management socket")?;
        stream.set_read_timeout(Some(PATIENCE))?;
        // A daemon that closes early is as good as one that answers.
        let _ = stream.write_all(line);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        ensure!(!answer.contains("\"Ok\""), "{line:?} was taken: {answer}");
    }
    Ok(())
}

pub(crate) fn management(_length: Length) -> Result<()> {
    let scratch = Scratch::new()?;
    let mut store = Store::start(&scratch, "b")?;
    nonsense(&scratch.join("b/stored.sock"))?;
    store.daemon().check()?;
    store.make_pool(1, 256 * MIB)?;
    let mut switch = Switch::start(&scratch, "s", None)?;
    nonsense(&scratch.join("s/switchd.sock"))?;
    switch.daemon().check()?;
    switch.apply()?;
    let modes = output(Command::new("stat").args(["-c", "%a"]).arg(scratch.join("b/stored.sock")))?;
    ensure!(modes.trim() == "600", "the management socket's mode is {modes}");
    Ok(())
}
