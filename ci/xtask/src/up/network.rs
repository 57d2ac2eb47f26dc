// SPDX-License-Identifier: Apache-2.0
//! Two nodes on one machine: a namespace each, a veth pair as underlay that only the switches
//! touch, and a management link each into a bridge.

use super::layout::{BRIDGE, BRIDGE_ADDRESS, Layout, MANAGEMENT, PREFIX_LENGTH, UNDERLAY};
use anyhow::{Context, Result, bail};
use std::path::Path;
use std::process::Command;

/// Makes what is missing.
pub(super) fn lay(layout: &Layout) -> Result<()> {
    if layout.namespace(1).is_none() {
        return Ok(());
    }
    if !exists(None, BRIDGE) {
        refuse_overlap()?;
        ip(&["link", "add", BRIDGE, "type", "bridge"])?;
        ip(&["address", "add", &format!("{BRIDGE_ADDRESS}/{PREFIX_LENGTH}"), "dev", BRIDGE])?;
        ip(&["link", "set", BRIDGE, "up"])?;
    }
    for number in layout.numbers() {
        management(layout, number)?;
    }
    underlay(layout)
}

fn management(layout: &Layout, number: u8) -> Result<()> {
    let Some(namespace) = layout.namespace(number) else { return Ok(()) };
    if !namespace_path(&namespace).exists() {
        ip(&["netns", "add", &namespace])?;
        ip(&["-n", &namespace, "link", "set", "lo", "up"])?;
    }
    if exists(Some(&namespace), MANAGEMENT) {
        return Ok(());
    }
    let port = layout.bridge_port(number);
    ip(&["link", "add", &port, "type", "veth", "peer", "name", MANAGEMENT, "netns", &namespace])?;
    ip(&["link", "set", &port, "master", BRIDGE, "up"])?;
    let address = format!("{}/{PREFIX_LENGTH}", layout.management(number));
    ip(&["-n", &namespace, "address", "add", &address, "dev", MANAGEMENT])?;
    ip(&["-n", &namespace, "link", "set", MANAGEMENT, "up"])
}

/// No kernel address and no offloads: a frame is on this wire as the switch made it.
fn underlay(layout: &Layout) -> Result<()> {
    let (Some(one), Some(two)) = (layout.namespace(1), layout.namespace(2)) else { return Ok(()) };
    if !exists(Some(&one), UNDERLAY) {
        ip(&[
            "-n", &one, "link", "add", UNDERLAY, "type", "veth", "peer", "name", UNDERLAY, "netns",
            &two,
        ])?;
    }
    for namespace in [&one, &two] {
        let inside = ["netns", "exec", namespace];
        let quiet = format!("/proc/sys/net/ipv6/conf/{UNDERLAY}/disable_ipv6");
        let script = format!("test ! -e {quiet} || echo 1 > {quiet}");
        ip(&[inside.as_slice(), &["sh", "-c", &script]].concat())?;
        let offloads = [
            "ethtool", "-K", UNDERLAY, "rx", "off", "tx", "off", "gso", "off", "gro", "off", "tso",
            "off",
        ];
        ip(&[inside.as_slice(), &offloads].concat())?;
        ip(&["-n", namespace, "link", "set", UNDERLAY, "up"])?;
    }
    Ok(())
}

/// Removes everything that [`lay`] makes, as far as it is there.
pub(super) fn remove(layout: &Layout) -> Result<()> {
    for number in layout.numbers() {
        if let Some(namespace) = layout.namespace(number)
            && namespace_path(&namespace).exists()
        {
            ip(&["netns", "delete", &namespace])?;
        }
        // A veth goes with its other end's namespace, which the kernel takes down a little later.
        let port = layout.bridge_port(number);
        if layout.namespace(number).is_some() && exists(None, &port) {
            // It may go by itself between the look and the act.
            let _ = ip(&["link", "delete", &port]);
        }
    }
    if layout.namespace(1).is_some() && exists(None, BRIDGE) {
        ip(&["link", "delete", BRIDGE])?;
    }
    Ok(())
}

/// Our addresses may not be somebody else's already.
fn refuse_overlap() -> Result<()> {
    let output = Command::new("ip").args(["-o", "-4", "address", "show"]).output();
    let output = output.context("ip does not start: apt-get install iproute2")?;
    let text = String::from_utf8_lossy(&output.stdout);
    if let Some(line) = text.lines().find(|line| line.contains("inet 198.18.0.")) {
        bail!("198.18.0.0/24 is in use on this machine: {line}; take it away or use one node");
    }
    Ok(())
}

fn namespace_path(namespace: &str) -> std::path::PathBuf {
    Path::new("/run/netns").join(namespace)
}

fn exists(namespace: Option<&str>, link: &str) -> bool {
    let mut command = Command::new("ip");
    if let Some(namespace) = namespace {
        command.args(["-n", namespace]);
    }
    let output = command.args(["link", "show", "dev", link]).output();
    output.is_ok_and(|output| output.status.success())
}

fn ip(arguments: &[&str]) -> Result<()> {
    let output = Command::new("ip").args(arguments).output();
    let output = output.context("ip does not start: apt-get install iproute2")?;
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr);
        bail!("ip {}: {}", arguments.join(" "), errors.trim());
    }
    Ok(())
}
