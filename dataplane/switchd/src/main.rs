// SPDX-License-Identifier: Apache-2.0
#![forbid(unsafe_code)]
//! plinth-switchd: the packets of one node, between its guests' vhost-user sockets and its
//! underlay.
//!
//! One worker thread owns the switch, the guests' queues and the uplink's queue. Around it: a
//! thread for each guest NIC that speaks vhost-user, a thread for each management connection, and
//! this one, which tries again what could not be carried out at the start, until it is told to
//! stop.
//!
//! The order of the start: the lock on the run folder, DPDK, the worker, the kept configuration,
//! the management socket. Guests are served before anybody can ask.

mod control;
mod look;
mod nic;
mod refusal;
mod service;
mod uplink;
mod worker;

use clap::Parser;
use control::Control;
use plinth_dpdk::{Eal, EalConfig, EalError};
use plinth_manage::{Kept, ListenError, LoadError, Server, ServerConfig};
use plinth_obs::Chain;
use plinth_ports::Message;
use plinth_rt::{Mode, StopSignals, WorkerConfig};
use plinth_switch_api::SwitchConfig;
use plinth_vswitch::Limits;
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

/// The flow table is read at random places, which large pages make cheap.
#[global_allocator]
static ALLOCATOR: plinth_bulk::LargePages = plinth_bulk::LargePages;

/// How often what could not be carried out at the start is tried again.
const MEND_EVERY: Duration = Duration::from_secs(2);

/// Room for 100 000 connections of one port, which has half of the table and two entries for
/// each connection.
const FLOWS: u32 = 1 << 19;
const _: () = assert!(FLOWS / 2 >= 2 * 100_000);

/// Carries guests' packets between vhost-user-net sockets and the underlay.
#[derive(Debug, Parser)]
#[command(name = "plinth-switchd", version)]
struct Arguments {
    /// Folder of the management socket; made if it is not there
    #[arg(long, default_value = "/run/plinth")]
    run_dir: PathBuf,
    /// Folder where the last configuration is kept; made if it is not there
    #[arg(long, default_value = "/var/lib/plinth")]
    state_dir: PathBuf,
    /// The management socket, if not switchd.sock in the run folder
    #[arg(long)]
    socket: Option<PathBuf>,
    /// The CPU that the worker is pinned to
    #[arg(long)]
    cpu: Option<u32>,
    /// What the worker does when idle: adaptive sleeps after a while, poll never, interrupt at once
    #[arg(long, default_value = "adaptive")]
    mode: Mode,
    /// Packet memory for the uplink, in MiB
    #[arg(long, default_value_t = 128)]
    memory_mb: u32,
    /// Take ordinary pages even where hugepages are free
    #[arg(long)]
    no_hugepages: bool,
    /// Flow entries, of which a connection has two and one port at most half. Each takes 168 bytes:
    /// the default 88 MB
    #[arg(long, default_value_t = FLOWS)]
    flows: u32,
    /// For how many seconds after a start with a kept configuration TCP connections that the rules
    /// allow are picked up in their middle
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    grace: u32,
    /// Take guest memory that its owner can shrink, which would end this process. For frontends
    /// that are trusted like the switch itself, such as a generator of load
    #[arg(long)]
    trust_frontends: bool,
}

#[derive(Debug, thiserror::Error)]
enum RunError {
    #[error("the folder {} cannot be made", path.display())]
    Folder { path: PathBuf, source: std::io::Error },
    #[error("the lock {} cannot be taken", path.display())]
    Lock { path: PathBuf, source: std::io::Error },
    #[error(
        "another plinth-switchd holds {}; stop it, or choose another run folder",
        path.display()
    )]
    Locked { path: PathBuf },
    #[error("signals cannot be waited for")]
    Signals { source: std::io::Error },
    #[error("packet memory cannot be had")]
    Eal { source: EalError },
    #[error("the kept configuration is of no use")]
    Load { source: LoadError },
    #[error("the worker does not start")]
    Worker { source: worker::StartError },
    #[error("the worker started and does nothing")]
    Silent { source: worker::WorkerSilent },
    #[error("the management socket cannot be served")]
    Listen { source: ListenError },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    plinth_obs::init(tracing::Level::INFO);
    plinth_obs::abort_on_panic();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(err = display(Chain(&error)), "plinth-switchd ends");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), RunError> {
    // First of all: threads inherit what is blocked here.
    let signals = StopSignals::block().map_err(|source| RunError::Signals { source })?;
    make_folder(&arguments.run_dir)?;
    make_folder(&arguments.state_dir)?;
    // A killed process leaves no lock, and a second one must not take guests' sockets away.
    let _lock = lock(&arguments.run_dir.join("switchd.lock"))?;
    let kept = Kept::at(arguments.state_dir.join("switchd.json"));
    let wanted: Option<SwitchConfig> = kept.load().map_err(|source| RunError::Load { source })?;
    let eal = Eal::init(&EalConfig {
        memory_mb: arguments.memory_mb,
        use_hugepages: !arguments.no_hugepages,
        single_file: false,
    })
    .map_err(|source| RunError::Eal { source })?;
    let memory = eal.memory().to_string();
    let limits = Limits {
        flows: arguments.flows,
        flows_per_port: (arguments.flows / 2).max(1),
        ..Limits::default()
    };
    let mut config = WorkerConfig::new("switch");
    config.cpu = arguments.cpu;
    config.mode = arguments.mode;
    let (worker, port, link) =
        worker::start(config, eal, limits).map_err(|source| RunError::Worker { source })?;
    let opener = uplink::Opener::new(eal, arguments.memory_mb);
    let nics = nic::Nics::new(link, arguments.trust_frontends);
    let control = Arc::new(Control::new(port.clone(), nics, opener, kept, limits));
    if let Some(wanted) = wanted {
        tracing::info!(epoch = wanted.epoch.0, "kept configuration found");
        // Before anything is served: whoever kept a configuration had connections. A first start
        // has none, and gets no grace.
        let grace = Message::BeginGrace(Duration::from_secs(arguments.grace.into()));
        port.tell(grace).map_err(|source| RunError::Silent { source })?;
        control.resume(wanted);
    }
    let stats = Arc::clone(worker.stats());
    let service =
        service::Switchd::new(Arc::clone(&control), port, stats, memory.clone(), arguments.cpu);
    let socket = arguments.socket.clone().unwrap_or_else(|| arguments.run_dir.join("switchd.sock"));
    let server = Server::start(ServerConfig::new(&socket), Arc::new(service))
        .map_err(|source| RunError::Listen { source })?;
    tracing::info!(?socket, memory, "plinth-switchd serves");
    while !signals.wait(MEND_EVERY) {
        control.mend();
    }
    tracing::info!("plinth-switchd stops");
    // Nobody may ask for more; then guests are let go; then the worker ends.
    server.stop();
    control.stop();
    worker.stop();
    Ok(())
}

fn make_folder(path: &Path) -> Result<(), RunError> {
    std::fs::create_dir_all(path).map_err(|source| RunError::Folder { path: path.into(), source })
}

/// Takes a lock that the kernel lets go of when the process ends, however it ends.
fn lock(path: &Path) -> Result<File, RunError> {
    let fault = |source| RunError::Lock { path: path.into(), source };
    let file = File::create(path).map_err(fault)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(RunError::Locked { path: path.into() }),
        Err(TryLockError::Error(source)) => Err(fault(source)),
    }
}
