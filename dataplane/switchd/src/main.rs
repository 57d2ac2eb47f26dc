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

mod answerer;
mod capture;
mod control;
mod handover;
mod inquiries;
mod keeping;
mod look;
mod nic;
mod refusal;
mod service;
mod trace;
mod uplink;
mod upstream;
mod worker;

use answerer::Answerer;
use clap::Parser;
use control::Control;
use handover::{Active, Host, Standby, TakeOverError, TakenOver};
use keeping::Keeping;
use plinth_dpdk::{Eal, EalConfig, EalError};
use plinth_manage::{ListenError, LoadError, Server, ServerConfig};
use plinth_obs::Chain;
use plinth_ports::{AnsweringPort, Message};
use plinth_rt::{Mode, StopSignals, WorkerConfig};
use plinth_switch_api::METADATA_SOCKET;
use plinth_vswitch::Limits;
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The flow table is read at random places, which large pages make cheap.
#[global_allocator]
static ALLOCATOR: plinth_bulk::LargePages = plinth_bulk::LargePages;

/// How often what could not be carried out at the start is tried again.
const MEND_EVERY: Duration = Duration::from_secs(2);

/// How often it is looked whether a successor serves.
const LOOK_EVERY: Duration = Duration::from_millis(100);

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
    /// Take over guests and connections from the plinth-switchd that runs with the same folders
    #[arg(long)]
    take_over: bool,
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
    #[error("the thread that answers guests cannot be started")]
    Answerer { source: std::io::Error },
    #[error("the worker started and does nothing")]
    Silent { source: worker::WorkerSilent },
    #[error("the management socket cannot be served")]
    Listen { source: ListenError },
    #[error("the socket for a successor cannot be made")]
    Successor { source: std::io::Error },
    #[error("nothing was taken over")]
    TakeOver { source: TakeOverError },
    #[error("the kept configuration cannot be put into force beside the running process")]
    Prepare { source: control::ApplyError },
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
    // A killed process leaves no lock, and a second one must not take guests' sockets away. Who
    // takes over is given the lock.
    let own_lock = match arguments.take_over {
        true => None,
        false => Some(lock(&arguments.run_dir.join("switchd.lock"))?),
    };
    let eal = Eal::init(&EalConfig {
        memory_mb: arguments.memory_mb,
        use_hugepages: !arguments.no_hugepages,
        single_file: false,
    })
    .map_err(|source| RunError::Eal { source })?;
    let memory = eal.memory().to_string();
    let limits = limits(arguments);
    let config = worker_config(arguments);
    let worker::Started { worker, port, link, answering } =
        worker::start(config, eal, limits).map_err(|source| RunError::Worker { source })?;
    let answerer = answerer(answering, &arguments.run_dir)?;
    let opener = uplink::Opener::new(eal, arguments.memory_mb);
    let nics = nic::Nics::new(link, arguments.trust_frontends);
    let standby = arguments.take_over.then(|| Standby::meet(&arguments.run_dir)).transpose();
    let standby = standby.map_err(|source| RunError::TakeOver { source })?;
    // From here on the kept configuration does not change any more.
    let (keeping, wanted) =
        Keeping::open(&arguments.state_dir).map_err(|source| RunError::Load { source })?;
    let control =
        Arc::new(Control::new(port.clone(), nics, opener, keeping, limits, Arc::clone(&answerer)));
    if let Some(wanted) = wanted {
        tracing::info!(epoch = wanted.epoch.0, "kept configuration found");
        // Before anything is served: whoever kept a configuration had connections. A first start
        // has none, and gets no grace.
        let grace = Message::BeginGrace(Duration::from_secs(arguments.grace.into()));
        port.tell(grace).map_err(|source| RunError::Silent { source })?;
        match &standby {
            None => control.resume(wanted),
            Some(standby) => control
                .prepare(wanted, &standby.seats, standby.other_has_uplink)
                .map_err(|source| RunError::Prepare { source })?,
        }
    }
    let taken = standby.as_ref().map(|standby| standby.take(&port)).transpose();
    let taken = taken.map_err(|source| RunError::TakeOver { source })?;
    let stats = Arc::clone(worker.stats());
    let service = service::Switchd::new(
        Arc::clone(&control),
        (port.clone(), Arc::clone(&answerer)),
        stats,
        memory.clone(),
        arguments.cpu,
    );
    let service = Arc::new(service);
    let socket = arguments.socket.clone().unwrap_or_else(|| arguments.run_dir.join("switchd.sock"));
    let path = socket.clone();
    let manage = move || Server::start(ServerConfig::new(&path), Arc::clone(&service));
    let (server, lock) = match (standby, taken) {
        (Some(standby), Some(taken)) => take_service(&control, standby, taken, &manage),
        _ => {
            let server = manage().map_err(|source| RunError::Listen { source })?;
            (server, own_lock.expect("it was taken above by a process that does not take over"))
        }
    };
    let host = Host { control: Arc::clone(&control), port, lock, restart: Box::new(manage) };
    let active = Active::start(&arguments.run_dir, host, server)
        .map_err(|source| RunError::Successor { source })?;
    tracing::info!(?socket, memory, "plinth-switchd serves");
    wait_until_over(&signals, &active, &control);
    tracing::info!("plinth-switchd stops");
    // Nobody may ask for more; then guests are let go; then the worker ends.
    active.stop();
    control.stop();
    worker.stop();
    answerer.stop();
    Ok(())
}

fn answerer(port: AnsweringPort, run_dir: &Path) -> Result<Arc<Answerer>, RunError> {
    let metadata = run_dir.join(METADATA_SOCKET);
    Answerer::start(port, metadata).map_err(|source| RunError::Answerer { source })
}

/// Waits for a signal to stop or a successor that serves; tries again what is left to do.
fn wait_until_over(signals: &StopSignals, active: &Active, control: &Control) {
    let mut mended = Instant::now();
    while !active.is_over() {
        control.heed_checks();
        if mended.elapsed() >= MEND_EVERY {
            control.mend();
            mended = Instant::now();
        }
        if signals.wait(LOOK_EVERY) {
            break;
        }
    }
}

fn limits(arguments: &Arguments) -> Limits {
    Limits {
        flows: arguments.flows,
        flows_per_port: (arguments.flows / 2).max(1),
        ..Limits::default()
    }
}

fn worker_config(arguments: &Arguments) -> WorkerConfig {
    let mut config = WorkerConfig::new("switch");
    config.cpu = arguments.cpu;
    config.mode = arguments.mode;
    config
}

/// Brings into service what the process before this one has handed over, and lets that one end.
///
/// Where that fails the process ends on the spot. A device that is dropped in good order ends its
/// frontend's connection and removes its socket, and both are the other process's, which goes on.
fn take_service(
    control: &Control,
    standby: Standby,
    taken: TakenOver,
    manage: &dyn Fn() -> Result<Server, ListenError>,
) -> (Server, File) {
    let TakenOver { devices, lock } = taken;
    let outcome = control
        .adopt(devices)
        .map_err(|port| RunError::TakeOver { source: TakeOverError::NotServing { port } })
        .and_then(|()| manage().map_err(|source| RunError::Listen { source }))
        .and_then(|server| {
            standby.serves().map_err(|source| RunError::TakeOver { source })?;
            Ok(server)
        });
    match outcome {
        Ok(server) => (server, lock),
        Err(error) => {
            let err = tracing::field::display(Chain(&error));
            tracing::error!(err, "the process before this one goes on");
            std::process::exit(1);
        }
    }
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
