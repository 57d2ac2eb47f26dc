// SPDX-License-Identifier: Apache-2.0
//! Who serves: ours and the peers, each started afresh for a run and ended after it.

use super::cases::{Case, Load};
use crate::{blk, net};
use anyhow::{Context, Result, bail};
use plinth_ids::MacAddress;
use plinth_stage::daemon::{output, program};
use plinth_stage::{Daemon, Scratch, Store, Switch, until};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const DISK: u64 = 1 << 30;
const START: Duration = Duration::from_secs(30);
const OVS: &str = "perf/baselines/ovs";

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Contender {
    /// plinth-stored on a file.
    Stored,
    /// plinth-stored on its memory disk.
    StoredMemory,
    /// qemu-storage-daemon on a file, with io_uring and O_DIRECT.
    QemuStorageDaemon,
    /// plinth-switchd between two guest ports.
    Switchd,
    /// Open vSwitch with DPDK, one flow from port to port: it decides nothing.
    OvsPort,
    /// Open vSwitch with DPDK as a learning switch: the nearest to what ours does.
    OvsNormal,
    /// testpmd, which moves packets and looks at nothing: a limit, no switch.
    Testpmd,
}

/// One run's figures.
#[derive(Clone, Debug, Default)]
pub(crate) struct Run {
    pub figure: f64,
    pub p50: f64,
    pub p99: f64,
    pub losses: u64,
    pub command: Vec<String>,
}

impl Contender {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Stored => "plinth-stored",
            Self::StoredMemory => "plinth-stored, memory disk",
            Self::QemuStorageDaemon => "qemu-storage-daemon",
            Self::Switchd => "plinth-switchd",
            Self::OvsPort => "OVS-DPDK, port",
            Self::OvsNormal => "OVS-DPDK, normal",
            Self::Testpmd => "testpmd, io",
        }
    }

    const fn program(self) -> Option<&'static str> {
        match self {
            Self::Stored | Self::StoredMemory | Self::Switchd => None,
            Self::QemuStorageDaemon => Some("qemu-storage-daemon"),
            Self::OvsPort | Self::OvsNormal => Some("ovs-vswitchd"),
            Self::Testpmd => Some("dpdk-testpmd"),
        }
    }

    pub(crate) fn version(self) -> String {
        let Some(program) = self.program() else {
            return concat!("plinth ", env!("CARGO_PKG_VERSION")).to_owned();
        };
        // testpmd has no --version; its package is DPDK's.
        if self == Self::Testpmd {
            let asked = output(Command::new("pkg-config").args(["--modversion", "libdpdk"]));
            return asked
                .map_or_else(|_| "DPDK".to_owned(), |text| format!("DPDK {}", text.trim()));
        }
        let text = output(Command::new(program).arg("--version")).unwrap_or_default();
        text.lines().next().unwrap_or_default().to_owned()
    }

    /// Why this contender cannot run here.
    pub(crate) fn unmet(self) -> Option<String> {
        let program = self.program()?;
        let path = std::env::var_os("PATH").unwrap_or_default();
        let is_there = std::env::split_paths(&path).any(|folder| folder.join(program).is_file());
        if !is_there {
            return Some(format!("{program} is not installed (ci/setup bench)"));
        }
        let needs_hugepages = matches!(self, Self::OvsPort | Self::OvsNormal);
        (needs_hugepages && free_hugepages() < 900)
            .then(|| "it needs 900 free hugepages of 2 MiB (sysctl vm.nr_hugepages)".to_owned())
    }

    /// Starts the server, loads it for `seconds`, and ends it.
    pub(crate) fn run(self, case: &Case, seconds: f64) -> Result<Run> {
        let scratch = Scratch::new()?;
        match case.load {
            Load::Blk(arguments) => self.run_blk(&scratch, arguments, seconds),
            Load::Net(arguments) => self.run_net(&scratch, arguments, seconds),
        }
    }

    fn run_blk(self, scratch: &Scratch, arguments: &[&str], seconds: f64) -> Result<Run> {
        let folder = disk_folder()?;
        let (socket, _server): (PathBuf, Box<dyn std::any::Any>) = match self {
            Self::Stored | Self::StoredMemory => {
                let mut store = Store::start(scratch, "b")?;
                let device = match self {
                    Self::StoredMemory => PathBuf::from("memory:2GiB"),
                    _ => folder.path().join("pool"),
                };
                store.make_pool_on(1, &device, 2 * DISK)?;
                let socket = store.make_volume(1, 1, DISK, 1)?;
                (socket, Box::new(store))
            }
            Self::QemuStorageDaemon => {
                let (socket, daemon) = qemu_storage_daemon(scratch, folder.path())?;
                (socket, Box::new(daemon))
            }
            _ => bail!("{} serves no disks", self.name()),
        };
        // Every block exists before it is measured: a hole costs a disk nothing.
        let mut fill = perf(scratch, "blk", FILL_SECONDS)?;
        fill.arg("--socket").arg(&socket).args(["--order", "seq", "--block-size", "131072"]);
        fill.args(["--depth", "16", "--writes", "100", "--warm-up", "0"]);
        fill.args(["--flush-every", "4096", "--count", &(DISK / 131_072).to_string()]);
        output(&mut fill).context("filling the disk")?;
        let mut command = perf(scratch, "blk", seconds)?;
        command.arg("--socket").arg(&socket).args(arguments);
        output(&mut command)?;
        let report: blk::Report = read(scratch)?;
        let load = report.load.context("a load has a result")?;
        let (p50, p99) = (load.latency.p50, load.latency.p99);
        let command = report.circumstances.command;
        Ok(Run { figure: load.iops, p50, p99, losses: load.errors, command })
    }

    fn run_net(self, scratch: &Scratch, arguments: &[&str], seconds: f64) -> Result<Run> {
        let sockets = [scratch.join("g0.sock"), scratch.join("g1.sock")];
        let mut is_server = false;
        let (sockets, _server): ([PathBuf; 2], Box<dyn std::any::Any>) = match self {
            Self::Switchd => {
                let mut switch = Switch::start_for_load(scratch, "s")?;
                let port = |number: u8| MacAddress([2, 0, 0, 0, 0, 9 + number]);
                let a = switch.add_port(1, 100, port(1), Ipv4Addr::new(10, 0, 0, 1));
                let b = switch.add_port(2, 100, port(2), Ipv4Addr::new(10, 0, 0, 2));
                switch.apply()?;
                ([a, b], Box::new(switch))
            }
            Self::OvsPort | Self::OvsNormal => {
                is_server = true;
                let scenario = if self == Self::OvsPort { "port" } else { "normal" };
                (sockets, Box::new(Ovs::start(scratch, scenario)?))
            }
            Self::Testpmd => {
                let server = Box::new(testpmd(scratch, &sockets)?);
                (sockets, server)
            }
            _ => bail!("{} moves no packets", self.name()),
        };
        let mut command = perf(scratch, "net", seconds)?;
        command.arg("--a").arg(&sockets[0]).arg("--b").arg(&sockets[1]).args(arguments);
        command.args(["--mac-a", "02:00:00:00:00:0a", "--mac-b", "02:00:00:00:00:0b"]);
        if is_server {
            command.arg("--server");
        }
        output(&mut command)?;
        let report: net::Report = read(scratch)?;
        let (result, command) = (report.result, report.circumstances.command);
        let (p50, p99) = (result.latency.p50, result.latency.p99);
        Ok(Run { figure: result.received_pps, p50, p99, losses: result.lost, command })
    }
}

/// The longest that filling the disk may take; it ends when the disk is full.
const FILL_SECONDS: f64 = 120.0;

fn free_hugepages() -> u64 {
    let path = "/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages";
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.trim().parse().unwrap_or(0)
}

/// A folder on a disk, not in memory: beside what cargo builds.
fn disk_folder() -> Result<Folder> {
    let own = program("plinth-perf")?;
    let target = own.ancestors().nth(2).context("the target folder")?;
    let path = target.join(format!("bench-{}", std::process::id()));
    std::fs::create_dir_all(&path).with_context(|| path.display().to_string())?;
    Ok(Folder(path))
}

/// Removed on drop.
#[derive(Debug)]
struct Folder(PathBuf);

impl Folder {
    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A run of ours as the load, on CPU 0, bounded.
fn perf(scratch: &Scratch, verb: &str, seconds: f64) -> Result<Command> {
    let mut command = Command::new("timeout");
    command.arg("180").arg(program("plinth-perf")?).arg(verb);
    command.args(["--seconds", &seconds.to_string(), "--cpu", "0"]);
    command.arg("--json").arg(scratch.join("result.json"));
    Ok(command)
}

fn read<T: serde::de::DeserializeOwned>(scratch: &Scratch) -> Result<T> {
    let text = std::fs::read_to_string(scratch.join("result.json")).context("a run's result")?;
    serde_json::from_str(&text).context("a run's result")
}

fn qemu_storage_daemon(scratch: &Scratch, folder: &Path) -> Result<(PathBuf, Daemon)> {
    let (file, socket) = (folder.join("raw"), scratch.join("q.sock"));
    std::fs::File::create(&file)?.set_len(DISK)?;
    let blockdev =
        format!("driver=file,node-name=f,filename={},aio=io_uring,cache.direct=on", file.display());
    let export = format!(
        "type=vhost-user-blk,id=e,node-name=f,addr.type=unix,addr.path={},writable=on,num-queues=1",
        socket.display()
    );
    let mut command = Command::new("qemu-storage-daemon");
    command.args(["--blockdev", &blockdev, "--export", &export]);
    let daemon = Daemon::start("qemu-storage-daemon", command, &scratch.join("q.log"))?;
    until(START, "qemu-storage-daemon listens", || socket.exists())?;
    Ok((socket, daemon))
}

fn testpmd(scratch: &Scratch, sockets: &[PathBuf; 2]) -> Result<Daemon> {
    // Its standard input must stay open, or it ends: a pipe that it opens for writing too.
    let script = format!(
        "mkfifo {input} && exec dpdk-testpmd --lcores 0@0,1@1 --main-lcore 0 -n 1 --no-huge -m 512 \
         --no-pci --no-shconf --file-prefix plt{} --vdev net_vhost0,iface={} \
         --vdev net_vhost1,iface={} -- --nb-cores=1 --forward-mode=io --auto-start \
         --no-mlockall --total-num-mbufs=8192 <>{input}",
        std::process::id(),
        sockets[0].display(),
        sockets[1].display(),
        input = scratch.join("testpmd.input").display(),
    );
    let mut command = Command::new("bash");
    command.args(["-c", &script]);
    let daemon = Daemon::start("testpmd", command, &scratch.join("testpmd.log"))?;
    until(START, "testpmd listens", || sockets.iter().all(|socket| socket.exists()))?;
    Ok(daemon)
}

/// A private Open vSwitch, ended with its database on drop.
#[derive(Debug)]
struct Ovs {
    folder: PathBuf,
}

impl Ovs {
    fn start(scratch: &Scratch, scenario: &str) -> Result<Self> {
        let ovs = Self { folder: scratch.path().to_owned() };
        ovs.call("up", None)?;
        ovs.call("scenario", Some(scenario))?;
        Ok(ovs)
    }

    fn call(&self, verb: &str, argument: Option<&str>) -> Result<String> {
        let mut command = Command::new("timeout");
        command.arg("60").arg(OVS).arg(verb).arg(&self.folder).args(argument);
        output(&mut command)
    }
}

impl Drop for Ovs {
    fn drop(&mut self) {
        let _ = self.call("down", None);
    }
}
