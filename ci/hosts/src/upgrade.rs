// SPDX-License-Identifier: Apache-2.0
//! A node's switch replaced from the command line, under kernels' stacks that talk.

use crate::lab::{LIMIT, Lab};
use anyhow::{Context, Result, bail, ensure};
use plinth_ids::MacAddress;
use plinth_stage::TapGuest;
use plinth_stage::runner::Length;
use plinth_stage::tap_guest::NIC;
use serde_json::Value;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const SWITCH: &str = "plinth-switchd";
const ROUNDS: u32 = 3;

/// A VM that sleeps, and a kernel's stack at its NIC.
fn guest(lab: &Lab, name: &str) -> Result<TapGuest> {
    lab.plinth(&format!("vm create {name} --kernel /none --nic front"))?;
    lab.plinth(&format!("vm start {name} --no-wait"))?;
    let view = lab.plinth(&format!("vm show {name}"))?;
    let nic = &view["nics"][0];
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let mac: MacAddress = text(&nic["mac"]).with_context(|| view.to_string())?.parse()?;
    let address: Ipv4Addr =
        text(&nic["addresses"][0]).with_context(|| view.to_string())?.parse()?;
    let port = nic["port"].as_u64().with_context(|| view.to_string())?;
    let socket = lab.scratch.join(&format!("run/net/port-{port}.sock"));
    lab.until("the port's socket", |_| socket.exists().then_some(()))?;
    TapGuest::start(&lab.scratch, name, &socket, mac, address)
}

/// A connection that lasts for the whole test, with some packets a millisecond.
struct Stream {
    server: Child,
    client: Child,
    report: PathBuf,
}

impl Stream {
    fn start(lab: &Lab, from: &TapGuest, to: &TapGuest) -> Result<Self> {
        let mut server = to.namespace.command("iperf3");
        server.args(["-s", "-1"]).stdout(Stdio::null()).stderr(Stdio::null());
        let server = server.spawn().context("iperf3 -s")?;
        std::thread::sleep(Duration::from_millis(500));
        let report = lab.scratch.join("stream.json");
        let mut client = from.namespace.command("iperf3");
        client.args(["-J", "-b", "20M", "-t", "8", "-c", &to.address.to_string()]);
        client.stdout(std::fs::File::create(&report)?).stderr(Stdio::null());
        Ok(Self { server, client: client.spawn().context("iperf3 -c")?, report })
    }

    /// Waits for the stream's end; it must have been one connection, and have brought its bytes.
    fn finish(mut self) -> Result<()> {
        let begin = Instant::now();
        while self.client.try_wait()?.is_none() && begin.elapsed() < LIMIT {
            std::thread::sleep(Duration::from_millis(50));
        }
        let status = self.client.try_wait()?;
        for child in [&mut self.client, &mut self.server] {
            let _ = child.kill();
            let _ = child.wait();
        }
        let text = std::fs::read_to_string(&self.report)?;
        ensure!(status.is_some_and(|status| status.success()), "the connection was lost: {text}");
        let report: Value = serde_json::from_str(&text)?;
        let received = report["end"]["sum_received"]["bytes"].as_u64().unwrap_or(0);
        let again = report["end"]["sum_sent"]["retransmits"].as_u64().unwrap_or(0);
        println!("   {received} bytes in one connection, {again} segments sent again");
        ensure!(received >= 15_000_000, "only {received} bytes came through: {text}");
        Ok(())
    }
}

/// Where packets may have been lost, for who reads of a failure: what the switch dropped, what the
/// guests' kernels did, and how many echoes and answers they saw.
fn losses(lab: &Lab, guests: [&TapGuest; 2]) -> Result<String> {
    let mut text = format!("{}\n", lab.plinth("net drops")?);
    for guest in guests {
        text += &guest.namespace.ip(&format!("-s link show {NIC}"))?;
        text += &guest.namespace.run("grep Icmp: /proc/net/snmp")?;
    }
    Ok(text)
}

/// The longest time between two answers of `count` pings that were sent every 2 ms, and whether
/// all of them were answered.
fn longest_gap(from: &TapGuest, to: Ipv4Addr, count: u32) -> Result<(Duration, bool)> {
    let text = from.namespace.run(&format!("ping -D -n -c {count} -i 0.002 -W 2 {to}"))?;
    let stamp = |line: &str| line.strip_prefix('[')?.split(']').next()?.parse::<f64>().ok();
    let stamps: Vec<f64> = text.lines().filter_map(stamp).collect();
    let gap = stamps.windows(2).map(|pair| pair[1] - pair[0]).fold(0.0, f64::max);
    Ok((Duration::from_secs_f64(gap), text.contains(" 0% packet loss")))
}

/// Three upgrades under a stream and pings: no ping is lost, and the connection, which the groups of
/// both NICs follow, lives.
pub(crate) fn under_streams(_: Length) -> Result<()> {
    let lab = Lab::with_switch()?;
    lab.plinth("vpc create blue")?;
    lab.plinth("subnet create front --vpc blue --cidr 10.0.0.0/24")?;
    let (one, two) = (guest(&lab, "one")?, guest(&lab, "two")?);
    one.reaches(two.address, LIMIT)?;
    let stream = Stream::start(&lab, &one, &two)?;
    let mut process = lab.process(SWITCH)?;
    for round in 0..ROUNDS {
        let gap = std::thread::scope(|scope| {
            let pings = scope.spawn(|| longest_gap(&two, one.address, 600));
            std::thread::sleep(Duration::from_millis(300));
            let done = lab.plinth("node upgrade-switch node-1");
            let gap = pings.join().map_err(|_| anyhow::anyhow!("the pinging thread ended"))?;
            anyhow::Ok((done?, gap?))
        });
        let (done, (gap, is_whole)) = gap.with_context(|| format!("round {round}"))?;
        if !is_whole {
            bail!("round {round}: pings were lost\n{}", losses(&lab, [&one, &two])?);
        }
        ensure!(done["process_before"] == process, "round {round}: {done}, was {process}");
        process = done["process"].as_u64().context("no process")?;
        println!("   upgraded in {} ms, {gap:?} between two pings", done["took_ms"]);
        lab.until("the new process is shown", |lab| {
            (lab.process(SWITCH).ok()? == process).then_some(())
        })?;
    }
    stream.finish()?;
    let counted = two.namespace.run(&format!("cat /sys/class/net/{NIC}/statistics/rx_bytes"))?;
    ensure!(counted.trim().parse::<u64>()? > 15_000_000, "the stream went another way: {counted}");
    ensure!(lab.refused("node upgrade-switch node-9")? == "not-found");
    for name in ["one", "two"] {
        lab.plinth(&format!("vm delete {name} --force"))?;
    }
    lab.stop()
}

/// A switch that does not serve as successor leaves the old one in service, and is told of.
pub(crate) fn failed(_: Length) -> Result<()> {
    let lab = Lab::with_switch()?;
    lab.plinth("vpc create blue")?;
    lab.plinth("subnet create front --vpc blue --cidr 10.0.0.0/24")?;
    let (one, two) = (guest(&lab, "one")?, guest(&lab, "two")?);
    one.reaches(two.address, LIMIT)?;
    let process = lab.process(SWITCH)?;
    // Its kept configuration becomes nonsense, which only a process that starts reads.
    let kept = lab.scratch.join("state/switchd.json");
    let good = std::fs::read(&kept).context("the switch keeps its configuration elsewhere")?;
    std::fs::write(&kept, "nonsense")?;
    ensure!(lab.refused("node upgrade-switch node-1")? == "failed");
    one.ping(two.address, 20, 56).context("the old one goes on")?;
    std::fs::write(&kept, good)?;
    ensure!(lab.process(SWITCH)? == process, "the old process is gone");
    ensure!(lab.plinth("node upgrade-switch node-1")?["process_before"] == process);
    one.ping(two.address, 20, 56).context("after an upgrade that came about")?;
    for name in ["one", "two"] {
        lab.plinth(&format!("vm delete {name} --force"))?;
    }
    lab.stop()
}

/// The switch is killed twice under a stream: the connection, which the groups of both NICs follow,
/// lives, because what is in its middle is picked up for a grace period.
pub(crate) fn killed(_: Length) -> Result<()> {
    let lab = Lab::with_switch()?;
    lab.plinth("vpc create blue")?;
    lab.plinth("subnet create front --vpc blue --cidr 10.0.0.0/24")?;
    let (one, two) = (guest(&lab, "one")?, guest(&lab, "two")?);
    one.reaches(two.address, LIMIT)?;
    let stream = Stream::start(&lab, &one, &two)?;
    for round in 0..2 {
        let process = lab.process(SWITCH)?;
        let (gap, _) = std::thread::scope(|scope| {
            let pings = scope.spawn(|| longest_gap(&two, one.address, 800));
            std::thread::sleep(Duration::from_millis(300));
            let kill = Command::new("kill").args(["-9", &process.to_string()]).status()?;
            ensure!(kill.success(), "the switch, process {process}, is not there");
            pings.join().map_err(|_| anyhow::anyhow!("the pinging thread ended"))?
        })
        .with_context(|| format!("kill {round}"))?;
        println!("   killed, {gap:?} between two pings");
        lab.until("the new process is shown", |lab| {
            (lab.process(SWITCH).ok()? != process).then_some(())
        })?;
    }
    stream.finish()?;
    for name in ["one", "two"] {
        lab.plinth(&format!("vm delete {name} --force"))?;
    }
    lab.stop()
}
