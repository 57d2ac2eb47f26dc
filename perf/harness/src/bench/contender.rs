// SPDX-License-Identifier: Apache-2.0
//! Who serves: ours and the peers, each started afresh for a run and ended after it.

use super::cases::Case;
use super::{Folder, Run};
use crate::net;
use anyhow::{Context, Result, ensure};
use plinth_ids::MacAddress;
use plinth_stage::daemon::{output, program};
use plinth_stage::{Daemon, Scratch, Switch, until};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

const DISK: u64 = 1 << 30;
const START: Duration = Duration::from_secs(30);
const OVS: &str = "perf/baselines/ovs";

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Contender {
    /// plinth-switchd between two guest ports.
    Switchd,
    /// Open vSwitch with DPDK, one flow from port to port: it decides nothing.
    OvsPort,
    /// Open vSwitch with DPDK as a learning switch: the nearest to what ours does.
    OvsNormal,
    /// testpmd, which moves packets and looks at nothing: a limit, no switch.
    Testpmd,
}

impl Contender {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Switchd => "plinth-switchd",
            Self::OvsPort => "OVS-DPDK, port",
            Self::OvsNormal => "OVS-DPDK, normal",
            Self::Testpmd => "testpmd, io",
        }
    }

    const fn program(self) -> Option<&'static str> {
        match self {
            Self::Switchd => None,
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
        self.run_net(&scratch, case.load, seconds)
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
        let (figure, losses) = (result.received_pps, result.lost);
        Ok(Run { figure, p50, p99, losses, command, ..Run::default() })
    }
}

fn free_hugepages() -> u64 {
    let path = "/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages";
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.trim().parse().unwrap_or(0)
}

/// A folder on a disk, not in memory: beside what cargo builds.
pub(super) fn disk_folder() -> Result<Folder> {
    let own = program("plinth-perf")?;
    folder_in(own.ancestors().nth(2).context("the target folder")?)
}

/// A folder in memory, for so many bytes.
pub(super) fn memory_folder(bytes: u64) -> Result<Folder> {
    let text = std::fs::read_to_string("/proc/meminfo").context("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kilobytes = line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse().ok());
    let available: u64 = kilobytes.context("the memory that is available")?;
    ensure!(
        available << 10 >= bytes,
        "{} MiB of free memory are needed and {} are there: --skip this case, or stop something",
        bytes >> 20,
        available >> 10
    );
    folder_in(Path::new("/dev/shm"))
}

fn folder_in(parent: &Path) -> Result<Folder> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    // Only makes names differ; publishes nothing.
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let path = parent.join(format!("plinth-bench-{}-{number}", std::process::id()));
    std::fs::create_dir_all(&path).with_context(|| path.display().to_string())?;
    Ok(Folder(path))
}

/// A run of ours as the load, on CPU 0, bounded.
pub(super) fn perf(scratch: &Scratch, verb: &str, seconds: f64) -> Result<Command> {
    let mut command = Command::new("timeout");
    command.arg("900").arg(program("plinth-perf")?).arg(verb);
    command.args(["--seconds", &seconds.to_string(), "--cpu", "0"]);
    command.arg("--json").arg(scratch.join("result.json"));
    Ok(command)
}

pub(super) fn read<T: serde::de::DeserializeOwned>(scratch: &Scratch) -> Result<T> {
    let text = std::fs::read_to_string(scratch.join("result.json")).context("a run's result")?;
    serde_json::from_str(&text).context("a run's result")
}

pub(super) fn qemu_storage_daemon(scratch: &Scratch, folder: &Path) -> Result<(PathBuf, Daemon)> {
    let (file, socket) = (folder.join("raw"), scratch.join("q.sock"));
    std::fs::File::create(&file)?.set_len(DISK)?;
    let blockdev =
        format!("driver=file,node-name=f,filename={},aio=io_uring,cache.direct=on", file.display());
    let export = format!(
        "type=vhost-user-blk,id=e,node-name=f,addr.type=unix,addr.path={},writable=on,num-queues=1",
        socket.display()
    );
    let mut command = Command::new("taskset");
    command.args(["-c", "1", "qemu-storage-daemon"]);
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
