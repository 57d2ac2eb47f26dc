// SPDX-License-Identifier: Apache-2.0
//! A guest without a machine: the kernel's stack in a namespace, behind plinth-tap.

use crate::daemon::{Daemon, program};
use crate::namespace::Namespace;
use crate::scratch::Scratch;
use crate::wait::{until, within};
use anyhow::{Context, Result, bail};
use plinth_ids::MacAddress;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

/// The name of the guest's NIC.
pub const NIC: &str = "t0";

/// What fits the tunnel on an underlay of 1500.
const MTU: u16 = 1450;

#[derive(Debug)]
pub struct TapGuest {
    // Before the namespace, so that the device is gone when that is deleted.
    tap: Daemon,
    pub namespace: Namespace,
    pub address: Ipv4Addr,
}

impl TapGuest {
    /// A guest whose NIC is up and has its address, whether or not the switch is there.
    ///
    /// # Errors
    /// When a step fails; we need to be root.
    pub fn start(
        scratch: &Scratch,
        tag: &str,
        socket: &Path,
        mac: MacAddress,
        address: Ipv4Addr,
    ) -> Result<Self> {
        let namespace = Namespace::new(tag)?;
        // IPv6 speaks up by itself, and some tests count on silence.
        namespace.run("sysctl -q -w net.ipv6.conf.default.disable_ipv6=1")?;
        let mut command = namespace.command(program("plinth-tap")?);
        command.args(["--tap", NIC, "--socket"]).arg(socket);
        let tap = Daemon::start("plinth-tap", command, &scratch.join(&format!("tap-{tag}.log")))?;
        until(Duration::from_secs(10), "the TAP device is there", || {
            tap.log().contains("is there")
        })?;
        namespace.ip(&format!("link set {NIC} address {mac} mtu {MTU}"))?;
        namespace.ip(&format!("address add {address}/24 dev {NIC}"))?;
        namespace.ip(&format!("link set {NIC} up"))?;
        Ok(Self { tap, namespace, address })
    }

    /// One answered ping, for at most `limit`.
    ///
    /// # Errors
    /// When there is no answer.
    pub fn reaches(&self, to: Ipv4Addr, limit: Duration) -> Result<()> {
        within(limit, "a ping is answered", || {
            self.namespace.run(&format!("ping -n -c 1 -W 1 {to}")).map(drop)
        })
    }

    /// `count` pings, all of which must be answered.
    ///
    /// # Errors
    /// When one is not.
    pub fn ping(&self, to: Ipv4Addr, count: u32, size: u32) -> Result<()> {
        let line = format!("ping -n -c {count} -i 0.02 -W 2 -s {size} {to}");
        let output = self.namespace.run(&line)?;
        if !output.contains(" 0% packet loss") {
            bail!("pings were lost:\n{output}");
        }
        Ok(())
    }

    /// # Errors
    /// With its log, when plinth-tap is not running any more.
    pub fn check(&mut self) -> Result<()> {
        self.tap.check()
    }
}

/// A TCP stream for a second or two; bits per second as the receiver saw them.
///
/// # Errors
/// When it does not come about, or nothing arrives.
pub fn stream(
    scratch: &Scratch,
    from: &Namespace,
    to: (&Namespace, Ipv4Addr),
    seconds: u32,
) -> Result<u64> {
    let (namespace, address) = to;
    let mut command = namespace.command("iperf3");
    command.args(["--server", "--one-off", "--forceflush", "--bind", &address.to_string()]);
    let log = scratch.join(&format!("iperf-{}.log", namespace.name()));
    std::fs::write(&log, "").context("log")?;
    let server = Daemon::start("iperf3", command, &log)?;
    until(Duration::from_secs(10), "iperf3 listens", || server.log().contains("listening"))?;
    let line = format!("timeout 30 iperf3 --client {address} --time {seconds} --json");
    let text = from.run(&line)?;
    let received = text.split("\"sum_received\"").nth(1).context("iperf3 says no sum")?;
    let bits = received.split("\"bits_per_second\":").nth(1).context("iperf3 says no rate")?;
    let bits = bits.trim_start().split([',', '.', '}', '\n']).next().unwrap_or_default();
    let bits = bits.trim().parse().with_context(|| format!("iperf3's rate {bits:?}"))?;
    if bits == 0 {
        bail!("nothing arrived");
    }
    Ok(bits)
}
