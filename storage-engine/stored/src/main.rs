// SPDX-License-Identifier: Apache-2.0
//! plinth-stored: the volumes of one node, from its disks to its guests' vhost-user sockets.
//!
//! Worker threads own pools with their volumes, disks, and queues; most often there is one, which
//! owns all. Around them: a thread for each attachment that
//! speaks vhost-user, a thread for each management connection, and this one, which mends what
//! differs from the configuration until it is told to stop.

mod attachment;
mod config;
mod delta;
mod disks;
mod door;
mod engine;
mod flight;
mod format;
mod gather;
mod handover;
mod hosted;
mod keeper;
mod message;
mod meter;
mod pace;
mod place;
mod pool;
mod refusal;
mod scrub;
mod seat;
mod service;
mod show;
mod slow;
mod snapshots;
mod transfer;
mod worker;

use clap::Parser;
use format::Purpose;
use handover::{Active, TakeOverError};
use keeper::Keeper;
use plinth_manage::{Kept, ListenError, LoadError, Server, ServerConfig};
use plinth_metrics::{CreateError, Metrics, ReadError, read_path};
use plinth_obs::Chain;
use plinth_rt::{Mode, StopSignals, WorkerConfig};
use plinth_store_api::StoreConfig;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

/// How often what differs from the configuration is tried again.
const MEND_EVERY: Duration = Duration::from_secs(2);

/// Serves volumes to guests on vhost-user-blk sockets.
#[derive(Debug, Parser)]
#[command(name = "plinth-stored", version)]
struct Arguments {
    /// Folder of the management socket; made if it is not there
    #[arg(long, default_value = "/run/plinth")]
    run_dir: PathBuf,
    /// Folder where the last configuration is kept; made if it is not there
    #[arg(long, default_value = "/var/lib/plinth")]
    state_dir: PathBuf,
    /// The management socket, if not stored.sock in the run folder
    #[arg(long)]
    socket: Option<PathBuf>,
    /// The CPU that the worker is pinned to where the configuration lists no workers
    #[arg(long)]
    cpu: Option<u32>,
    /// What the worker does when idle: adaptive sleeps after a while, poll never, interrupt at once
    #[arg(long, default_value = "adaptive")]
    mode: Mode,
    /// Serve pools on null:SIZE too, which lose whatever guests write: to measure rings and dispatch
    #[arg(long)]
    measuring: bool,
    /// Take over guests and disks from the plinth-stored that runs with the same folders
    #[arg(long)]
    take_over: bool,
    /// From how many milliseconds on a request is slow
    #[arg(long, default_value_t = 100)]
    slow_ms: u64,
    /// Print the counters and latencies of a metrics file, such as stored.metrics in the run folder
    /// of a process that runs or has run, and end
    #[arg(long, value_name = "FILE")]
    show_metrics: Option<PathBuf>,
}

#[derive(Debug, thiserror::Error)]
enum RunError {
    #[error("the folder {path:?} cannot be made")]
    Folder { path: PathBuf, source: std::io::Error },
    #[error("signals cannot be waited for")]
    Signals { source: std::io::Error },
    #[error("the kept configuration is of no use")]
    Load { source: LoadError },
    #[error("what is measured cannot be shown")]
    Metrics { source: CreateError },
    #[error("the output cannot be written")]
    Output { source: std::io::Error },
    #[error("there is nothing to show")]
    Show { source: ReadError },
    #[error("the worker does not start")]
    Worker { source: worker::StartError },
    #[error("the management socket cannot be served")]
    Listen { source: ListenError },
    #[error("the socket for a successor cannot be made")]
    Successor { source: std::io::Error },
    #[error("nothing was taken over")]
    TakeOver { source: TakeOverError },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    plinth_obs::init(tracing::Level::INFO);
    plinth_obs::abort_on_panic();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let err = tracing::field::display(Chain(&error));
            tracing::error!(err, "plinth-stored ends");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), RunError> {
    if let Some(path) = &arguments.show_metrics {
        let picture = read_path(path).map_err(|source| RunError::Show { source })?;
        return show::print(&picture).map_err(|source| RunError::Output { source });
    }
    // First of all: threads inherit what is blocked here.
    let signals = StopSignals::block().map_err(|source| RunError::Signals { source })?;
    make_folder(&arguments.run_dir)?;
    make_folder(&arguments.state_dir)?;
    let mut config = WorkerConfig::new("stored");
    config.cpu = arguments.cpu;
    config.mode = arguments.mode;
    let metrics = Metrics::create(&arguments.run_dir.join("stored.metrics"), meter::SLOTS)
        .map_err(|source| RunError::Metrics { source })?;
    let metrics = Arc::new(metrics);
    let instruments =
        worker::Instruments { metrics: Arc::clone(&metrics), slow_ms: arguments.slow_ms };
    let port = worker::start(config, instruments).map_err(|source| RunError::Worker { source })?;
    // From here on the disks are ours, and the kept configuration does not change any more.
    let taken = if arguments.take_over {
        let taken = handover::take_over(&arguments.run_dir);
        Some(taken.map_err(|source| RunError::TakeOver { source })?)
    } else {
        None
    };
    let kept = Kept::at(arguments.state_dir.join("stored.json"));
    let wanted: Option<StoreConfig> = kept.load().map_err(|source| RunError::Load { source })?;
    let purpose = if arguments.measuring { Purpose::Measuring } else { Purpose::Service };
    let keeper = Arc::new(Keeper::new(port.clone(), purpose, Arc::clone(&metrics)));
    if let Some(wanted) = wanted {
        tracing::info!(epoch = wanted.epoch.0, "kept configuration found");
        keeper.want(wanted);
    }
    let service = service::Stored::new(Arc::clone(&keeper), port.clone(), kept, metrics);
    let service = Arc::new(service);
    let socket = arguments.socket.clone().unwrap_or_else(|| arguments.run_dir.join("stored.sock"));
    // Before the pools: a second process ends here, and has not touched a disk.
    let manage = move || Server::start(ServerConfig::new(&socket), Arc::clone(&service));
    let server = manage().map_err(|source| RunError::Listen { source })?;
    if let Some(taken) = taken {
        resume(&keeper, taken);
    }
    let active = Active::start(&arguments.run_dir, Arc::clone(&keeper), server, Box::new(manage))
        .map_err(|source| RunError::Successor { source })?;
    tracing::info!("plinth-stored serves");
    while !active.is_over() {
        keeper.carry_out();
        if signals.wait(MEND_EVERY) {
            break;
        }
    }
    tracing::info!("plinth-stored stops");
    // Nobody may ask for more; then guests are let go, pools are closed, the worker ends.
    active.stop();
    keeper.stop();
    port.stop();
    Ok(())
}

/// Brings into service what the process before this one has handed over, and lets that one end.
///
/// Where that fails the process ends on the spot. A device that is dropped in good order ends its
/// frontend's connection and removes its socket, and both are the other process's, which goes on.
fn resume(keeper: &Keeper, mut taken: handover::TakenOver) {
    keeper.adopt(std::mem::take(&mut taken.handed));
    keeper.carry_out();
    let outcome = match keeper.unserved() {
        Some(((pool, volume), fault)) => Err(TakeOverError::NotServing { pool, volume, fault }),
        None => taken.serves(),
    };
    if let Err(error) = outcome {
        let err = tracing::field::display(Chain(&error));
        tracing::error!(err, "the process before this one goes on");
        std::process::exit(1);
    }
}

fn make_folder(path: &Path) -> Result<(), RunError> {
    std::fs::create_dir_all(path).map_err(|source| RunError::Folder { path: path.into(), source })
}
