// SPDX-License-Identifier: Apache-2.0
//! `plinth cluster init`: what a cluster needs before its first start, as files on this machine.
//!
//! plinthd's configuration is written last: until it is there, a next try starts over, and
//! after it, a next try is refused and changes nothing.

use crate::args::InitArguments;
use plinth_client::{
    CaError, ClusterCa, ConfigError, DaemonConfig, Identity, IdentityError, NodeConfig,
    OperatorConfig, Role, ServiceConfig, tls_folder,
};
use plinth_ids::Name;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

#[derive(Debug, thiserror::Error)]
pub enum InitError {
    #[error(
        "{} exists: this machine has a cluster already; to start over, stop plinthd and delete \
         the state folder",
        path.display()
    )]
    Exists { path: PathBuf },
    #[error("cannot make {}", path.display())]
    Folder { path: PathBuf, source: io::Error },
    #[error("cannot make the cluster CA")]
    Ca(#[from] CaError),
    #[error("cannot write certificates")]
    Identity(#[from] IdentityError),
    #[error("cannot write the configuration")]
    Config(#[from] ConfigError),
}

/// Makes the files; answers what to say about them.
pub(crate) fn init(
    arguments: &InitArguments,
    config_dir: &Path,
    json: bool,
) -> Result<String, InitError> {
    let state = &arguments.state_dir;
    let path = DaemonConfig::path(state);
    if path.exists() {
        return Err(InitError::Exists { path });
    }
    let tls = tls_folder(state);
    folder(state, 0o755)?;
    folder(&tls, 0o700)?;
    folder(config_dir, 0o700)?;
    let ca = ClusterCa::create()?;
    ca.save(&tls)?;
    issue(&ca, &tls, "service", Role::Service, None)?;
    let node = (!arguments.no_node).then(|| NodeConfig {
        name: arguments.node.clone(),
        listen: arguments.agent,
        underlay: arguments.underlay.config(),
    });
    if let Some(node) = &node {
        issue(&ca, &tls, "node", Role::Node, Some(&node.name))?;
    }
    issue(&ca, config_dir, "operator", Role::Operator, None)?;
    OperatorConfig { service: arguments.listen }.save(config_dir)?;
    let service = ServiceConfig {
        cluster: arguments.name.to_string(),
        listen: arguments.listen,
        join: arguments.join,
        vcpus_per_cpu: 4,
    };
    DaemonConfig { service: Some(service), node }.save(state)?;
    Ok(report(arguments, config_dir, json))
}

fn issue(
    ca: &ClusterCa,
    folder: &Path,
    stem: &str,
    role: Role,
    node: Option<&Name>,
) -> Result<(), InitError> {
    let (key, certificate) = ca.issue(role, node)?;
    Ok(Identity::save(folder, stem, &certificate, &key, ca.certificate())?)
}

/// Makes a folder, and its parents; a fresh one gets the mode.
pub(crate) fn folder(path: &Path, mode: u32) -> Result<(), InitError> {
    let failed = |source| InitError::Folder { path: path.to_owned(), source };
    if path.is_dir() {
        return Ok(());
    }
    fs::create_dir_all(path).map_err(failed)?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(failed)
}

fn report(arguments: &InitArguments, config_dir: &Path, json: bool) -> String {
    let state = arguments.state_dir.display();
    if json {
        let value = serde_json::json!({
            "cluster": arguments.name,
            "state_dir": arguments.state_dir,
            "config_dir": config_dir,
            "service": arguments.listen,
            "join": arguments.join,
        });
        return format!("{value}\n");
    }
    format!(
        "cluster {} is made\n  state:    {state}\n  operator: {}\n\nNext: plinthd --state-dir \
         {state}\nthen: plinth cluster status\n",
        arguments.name,
        config_dir.display()
    )
}
