// SPDX-License-Identifier: Apache-2.0
//! The whole of it, as a newcomer starts it: two nodes on this machine, one VM on each.
//!
//! The demonstration proves by itself that guests ping and keep data; here its control is killed
//! under running guests, its idle share is measured, and what it leaves is looked for.

use anyhow::{Context, Result, bail, ensure};
use plinth_guest_image::GuestAgent;
use plinth_stage::daemon::{output, program};
use plinth_stage::runner::Length;
use plinth_stage::within;
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use crate::idle::share;

pub(crate) const RUN: &str = "/run/plinth-two";
pub(crate) const STATE: &str = "/var/lib/plinth-two";

const PATIENCE: Duration = Duration::from_secs(60);
/// Of one core, in percent, for all daemons of both nodes together.
const SHARE_MAX: f64 = 5.0;

/// Ends the nodes and removes their state, however the test ends.
struct Nodes;

impl Nodes {
    fn up() -> Result<Self> {
        let nodes = Self;
        xtask(&["up", "--nodes", "2"])?;
        Ok(nodes)
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        if let Err(error) = xtask(&["down"]) {
            println!("   down: {error:#}");
        }
        let _ = fs::remove_dir_all(STATE);
    }
}

fn xtask(words: &[&str]) -> Result<String> {
    output(Command::new(program("xtask")?).args(words))
}

/// The processes of both nodes whose program has this name.
fn processes(name: &str) -> Result<Vec<u32>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let Some(number) = entry.file_name().to_str().and_then(|text| text.parse().ok()) else {
            continue;
        };
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let mut words = line.split(|byte| *byte == 0).map(String::from_utf8_lossy);
        let is_named = words.next().is_some_and(|first| first.rsplit('/').next() == Some(name));
        if is_named && words.any(|word| word.starts_with(RUN)) {
            found.push(number);
        }
    }
    Ok(found)
}

/// The agents' sockets of all guests, in the order of the nodes.
fn agents() -> Result<Vec<PathBuf>> {
    let mut sockets = Vec::new();
    for node in ["node-1", "node-2"] {
        let folder = Path::new(RUN).join(node).join("vm");
        for entry in fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
            sockets.push(entry?.path().join("agent.sock"));
        }
    }
    Ok(sockets)
}

pub(crate) fn whole(_length: Length) -> Result<()> {
    let nodes = Nodes::up()?;
    let sockets = agents()?;
    ensure!(sockets.len() == 2, "two guests are expected: {sockets:?}");
    let mut two = GuestAgent::connect(&sockets[1], PATIENCE)?;
    let address = two.check("ip -4 -o addr show dev eth0 | awk '{print $4}' | cut -d/ -f1")?;
    ensure!(!address.is_empty(), "the second guest has no address");
    // A serial port has one client at a time, and `up` wants to speak with the guests too.
    drop(two);

    // Twice harmless: nothing is made again, nobody is disturbed.
    let before = processes("qemu-system-x86_64")?;
    xtask(&["up", "--nodes", "2"])?;
    ensure!(processes("qemu-system-x86_64")? == before, "a second up started guests again");

    let mut one = GuestAgent::connect(&sockets[0], PATIENCE)?;
    // Control dies on both nodes; a guest pings and writes on, and loses nothing.
    one.check(&format!("(ping -i 0.2 -c 25 {address} >/run/ping 2>&1 &)"))?;
    let control = processes("plinthd")?;
    ensure!(control.len() == 2, "two plinthd are expected: {control:?}");
    for process in &control {
        output(Command::new("kill").args(["-KILL", &process.to_string()]))?;
    }
    one.check("dd if=/dev/zero of=/root/file bs=64k count=32 conv=fsync 2>/dev/null")?;
    let text = within(PATIENCE, "the ping ends", || {
        let text = one.check("cat /run/ping")?;
        if text.contains("packets transmitted") { Ok(text) } else { bail!("it runs: {text}") }
    })?;
    ensure!(text.contains(" 0% packet loss"), "pings were lost while control was dead:\n{text}");
    ensure!(processes("plinthd")?.is_empty(), "plinthd lives after SIGKILL");
    ensure!(processes("plinth-switchd")?.len() == 2, "a switch died with its control");
    ensure!(processes("plinth-stored")?.len() == 2, "a store died with its control");

    drop(one);
    // Control comes back, finds everything again and starts nothing twice.
    xtask(&["up", "--nodes", "2"])?;
    ensure!(processes("qemu-system-x86_64")? == before, "control did not find its guests again");
    nic_comes_and_the_first_goes(&sockets[0], &address)?;
    idle()?;
    drop(nodes);
    ensure!(!Path::new(RUN).exists(), "{RUN} is left");
    for name in ["plinthd", "plinth-switchd", "plinth-stored", "qemu-system-x86_64"] {
        ensure!(processes(name)?.is_empty(), "{name} is left");
    }
    let namespaces = output(Command::new("ip").args(["netns", "list"]))?;
    ensure!(!namespaces.contains("plinth-"), "a namespace is left: {namespaces}");
    let links = output(Command::new("ip").args(["-o", "link"]))?;
    ensure!(!links.contains("plinth-"), "a link is left: {links}");
    Ok(())
}

/// One command of an operator; its JSON.
fn plinth(line: &str) -> Result<Value> {
    let mut command = Command::new(program("plinth")?);
    command.args(["--json", "--config-dir"]).arg(Path::new(STATE).join("operator"));
    let text = output(command.args(line.split_whitespace()))?;
    serde_json::from_str(&text).with_context(|| format!("{line} printed {text}"))
}

/// The running guest is given a second NIC, loses the one from its start, and is heard by the
/// other node's guest through the new one.
fn nic_comes_and_the_first_goes(agent: &Path, other: &str) -> Result<()> {
    let mut guest = GuestAgent::connect(agent, PATIENCE)?;
    let macs = "cat /sys/class/net/*/address";
    let old = plinth("nic show demo-1-0")?;
    let new = plinth("nic attach demo-1 demo")?;
    ensure!(new["name"] == "demo-1-1", "{new}");
    let text = |nic: &Value, key: &str| nic[key].as_str().unwrap_or_default().to_owned();
    let (old_mac, new_mac) = (text(&old, "mac"), text(&new, "mac"));
    let has = |mac: &str, wanted: bool, list: &str| list.contains(mac) == wanted;
    within(PATIENCE, "the guest has the new NIC", || {
        ensure!(has(&new_mac, true, &guest.check(macs)?), "no {new_mac}");
        Ok(())
    })?;
    within(PATIENCE, "the new NIC is attached", || {
        ensure!(plinth("nic show demo-1-1")?["state"] == "attached");
        Ok(())
    })?;
    plinth("nic detach demo-1-0")?;
    within(PATIENCE, "the first NIC is gone and forgotten", || {
        ensure!(has(&old_mac, false, &guest.check(macs)?), "{old_mac} is there");
        let left = plinth("nic list demo-1")?;
        ensure!(left.as_array().is_some_and(|list| list.len() == 1), "{left}");
        Ok(())
    })?;
    let address = new["addresses"][0].as_str().context("no address")?.to_owned();
    guest.check(&format!("ip link set eth1 up && ip addr add {address}/24 dev eth1"))?;
    within(PATIENCE, "the other guest answers through the new NIC", || {
        Ok(guest.check(&format!("ping -c 1 -W 2 {other}"))?)
    })?;
    // What was free again is given again, to a NIC that comes by itself after the other.
    let again = plinth("nic attach demo-1 demo")?;
    ensure!(again["name"] == "demo-1-0" && again["mac"] != old["mac"], "{again}");
    ensure!(again["addresses"][0] == old["addresses"][0], "{again}, it had {old}");
    let log = guest.check("dmesg")?;
    let is_bad = |line: &&str| line.contains("BUG") || line.contains("Call Trace");
    ensure!(!log.lines().any(|line| is_bad(&line)), "the guest complains:\n{log}");
    Ok(())
}

fn idle() -> Result<()> {
    thread::sleep(Duration::from_secs(8));
    let mut daemons = Vec::new();
    for name in ["plinthd", "plinth-switchd", "plinth-stored"] {
        daemons.extend(processes(name)?);
    }
    ensure!(daemons.len() == 6, "six daemons are expected: {daemons:?}");
    let ours: f64 = share(&daemons, Duration::from_secs(10))?.iter().sum();
    println!("   six daemons of two idle nodes use {ours:.1} % of one core");
    ensure!(ours < 2.0 * SHARE_MAX, "two idle nodes use {ours:.1} % of a core");
    Ok(())
}
