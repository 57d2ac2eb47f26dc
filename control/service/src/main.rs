// SPDX-License-Identifier: Apache-2.0
#![forbid(unsafe_code)]
//! plinthd: the control service and the node agent, whichever its configuration asks for.

use clap::Parser;
use plinth_client::{
    ConfigError, DaemonConfig, Identity, IdentityError, ListenError, Listener, Role, serve_agent,
    tls_folder,
};
use plinth_node::{NodeAgent, NodeConfig, PlaceError, Places, Surroundings};
use plinth_registry::{DiskRegistry, OpenError};
use plinth_service::{FirstNode, Service, ServiceOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use tokio::signal::unix::{SignalKind, signal};

/// The control service and the node agent of a Plinth cluster.
///
/// What it is to be stands in plinthd.toml in the state folder, which `plinth cluster init` or
/// `plinth node join` writes. It may be killed at any time: the switch, the store and the VMs go
/// on, and it finds them again.
#[derive(Debug, Parser)]
#[command(name = "plinthd", version)]
struct Arguments {
    /// What must survive a reboot: configuration, certificates, registry
    #[arg(long, default_value = "/var/lib/plinth", value_name = "FOLDER")]
    state_dir: PathBuf,
    /// Sockets and process files
    #[arg(long, default_value = "/run/plinth", value_name = "FOLDER")]
    run_dir: PathBuf,
    /// The switch [default: plinth-switchd beside this program]
    #[arg(long, value_name = "PATH")]
    switchd: Option<PathBuf>,
    /// The store [default: plinth-stored beside this program]
    #[arg(long, value_name = "PATH")]
    stored: Option<PathBuf>,
    /// The machine emulator
    #[arg(long, default_value = "/usr/bin/qemu-system-x86_64", value_name = "PATH")]
    qemu: PathBuf,
    /// The converter of disk images
    #[arg(long, default_value = "/usr/bin/qemu-img", value_name = "PATH")]
    qemu_img: PathBuf,
}

#[derive(Debug, thiserror::Error)]
enum RunError {
    #[error("plinthd is not configured; run `plinth cluster init` or `plinth node join` first")]
    Config(#[from] ConfigError),
    #[error("{} has neither [service] nor [node]: there is nothing to do", path.display())]
    Nothing { path: PathBuf },
    #[error("cannot start the runtime")]
    Runtime(#[source] io::Error),
    #[error("cannot listen for signals")]
    Signal(#[source] io::Error),
    #[error("this program's own place is not known; give --switchd and --stored")]
    OwnPath(#[source] io::Error),
    #[error("the node agent has no usable identity")]
    Identity(#[from] IdentityError),
    #[error("the folders are not usable")]
    Places(#[from] PlaceError),
    #[error("the node agent cannot start")]
    Agent(#[from] plinth_node::StartError),
    #[error("the node agent cannot listen")]
    Listen(#[from] ListenError),
    #[error("the control service has no registry")]
    Registry(#[from] OpenError),
    #[error("the control service cannot start")]
    Service(#[from] plinth_service::StartError),
}

fn main() -> ExitCode {
    plinth_obs::abort_on_panic();
    plinth_obs::init(tracing::Level::INFO);
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            tracing::error!(err = %plinth_obs::Chain(&err), "plinthd ends");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), RunError> {
    let config = DaemonConfig::load(&arguments.state_dir)?;
    if config.service.is_none() && config.node.is_none() {
        return Err(RunError::Nothing { path: DaemonConfig::path(&arguments.state_dir) });
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(RunError::Runtime)?;
    runtime.block_on(serve(arguments, config))
}

async fn serve(arguments: &Arguments, config: DaemonConfig) -> Result<(), RunError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(RunError::Signal)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(RunError::Signal)?;
    if let Some(node) = &config.node {
        let identity = Identity::load(&tls_folder(&arguments.state_dir), "node")?;
        let agent = NodeAgent::start(node_config(arguments)?)?;
        let listener = Listener::bind(node.listen, &identity, Role::Service)?;
        tracing::info!(node = %node.name, listen = %node.listen, "node agent is up");
        tokio::spawn(serve_agent(listener, Arc::new(agent)));
    }
    let service = start_service(&arguments.state_dir, &config).await?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("plinthd ends; switch, store and VMs go on");
    drop(service);
    Ok(())
}

async fn start_service(state: &Path, config: &DaemonConfig) -> Result<Option<Service>, RunError> {
    let Some(service) = &config.service else { return Ok(None) };
    let registry = Arc::new(DiskRegistry::open(&state.join("registry.redb"))?);
    let first_node = config.node.as_ref().map(|node| FirstNode {
        name: node.name.clone(),
        agent: node.listen,
        underlay: node.underlay.as_ref().map(plinth_client::UnderlayConfig::underlay),
    });
    let options = ServiceOptions {
        cluster: service.cluster.clone(),
        vcpus_per_cpu: service.vcpus_per_cpu,
        listen: service.listen,
        join: service.join,
        first_node,
    };
    let running = Service::start(options, &tls_folder(state), registry).await?;
    tracing::info!(listen = %running.address(), join = %running.join_address(), "service is up");
    Ok(Some(running))
}

fn node_config(arguments: &Arguments) -> Result<NodeConfig, RunError> {
    let own = std::env::current_exe().map_err(RunError::OwnPath)?;
    let beside = |given: &Option<PathBuf>, name: &str| {
        given.clone().unwrap_or_else(|| own.with_file_name(name))
    };
    Ok(NodeConfig {
        places: Places::new(&arguments.state_dir, &arguments.run_dir)?,
        switchd: beside(&arguments.switchd, "plinth-switchd"),
        stored: beside(&arguments.stored, "plinth-stored"),
        qemu: arguments.qemu.clone(),
        qemu_img: arguments.qemu_img.clone(),
        surroundings: Surroundings::default(),
    })
}
