// SPDX-License-Identifier: Apache-2.0
//! Network namespaces, each a machine of its own as far as the network goes.

use crate::daemon::output;
use anyhow::Result;
use std::process::Command;

/// Names begin with this and the number of the process that made them.
pub const PREFIX: &str = "plt";

/// Deleted on drop, with the devices in it.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Makes a namespace whose loopback is up.
    ///
    /// # Errors
    /// When we are not root, mostly.
    pub fn new(tag: &str) -> Result<Self> {
        let name = format!("{PREFIX}-{}-{tag}", std::process::id());
        output(Command::new("ip").args(["netns", "add", &name]))?;
        let namespace = Self { name };
        namespace.ip("link set lo up")?;
        Ok(namespace)
    }

    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// `program`, to be run inside.
    #[must_use]
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).arg(program);
        command
    }

    /// Runs `ip` inside with words from a line.
    ///
    /// # Errors
    /// When it fails.
    pub fn ip(&self, line: &str) -> Result<String> {
        output(self.command("ip").args(line.split(' ')))
    }

    /// Runs a line of words inside and gives its output.
    ///
    /// # Errors
    /// When it fails.
    pub fn run(&self, line: &str) -> Result<String> {
        let mut words = line.split(' ');
        let program = words.next().unwrap_or_default();
        output(self.command(program).args(words))
    }

    /// Joins two namespaces by a veth pair, both ends up, without offloads that a capture or
    /// an af_packet reader would see as half-made packets.
    ///
    /// # Errors
    /// When a name is taken.
    pub fn join(&self, own: &str, other: &Self, theirs: &str) -> Result<()> {
        let (name, peer) = (&self.name, &other.name);
        let line = format!("link add {own} netns {name} type veth peer name {theirs} netns {peer}");
        output(Command::new("ip").args(line.split(' ')))?;
        for (namespace, device) in [(self, own), (other, theirs)] {
            namespace.ip(&format!("link set {device} up"))?;
            namespace.run(&format!("ethtool -K {device} tx off rx off gso off gro off tso off"))?;
        }
        Ok(())
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = output(Command::new("ip").args(["netns", "delete", &self.name]));
    }
}

/// Removes the namespaces that process `number` left behind.
pub fn sweep(number: u32) {
    let prefix = format!("{PREFIX}-{number}-");
    let Ok(entries) = std::fs::read_dir("/run/netns") else { return };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with(&prefix) {
            let _ = output(Command::new("ip").args(["netns", "delete", &name]));
        }
    }
}
