// SPDX-License-Identifier: Apache-2.0
//! The configuration files of plinthd and of an operator.
//!
//! `plinth cluster init` and `plinth node join` write them, people may change them. A field that
//! is not known is an error: a mistyped one must not be overlooked.

use crate::identity::write_file;
use plinth_api::Underlay;
use plinth_ids::{MacAddress, Name};
use serde::{Deserialize, Serialize};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

/// `plinthd.toml` in the state folder.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct DaemonConfig {
    /// Absent on a node without the control service.
    pub service: Option<ServiceConfig>,
    /// Absent on a machine that runs the control service only.
    pub node: Option<NodeConfig>,
}

#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceConfig {
    /// The cluster's name.
    pub cluster: String,
    /// Where operators call.
    pub listen: SocketAddr,
    /// Where nodes without a certificate call.
    pub join: SocketAddr,
    /// vCPUs that may be given to VMs for each host thread.
    #[serde(default = "default_vcpus_per_cpu")]
    pub vcpus_per_cpu: u32,
}

const fn default_vcpus_per_cpu() -> u32 {
    4
}

#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct NodeConfig {
    pub name: Name,
    /// Where the service calls the agent; an address that the service can reach.
    pub listen: SocketAddr,
    pub underlay: Option<UnderlayConfig>,
}

/// The node's own end of the tunnels to other nodes.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct UnderlayConfig {
    /// A DPDK device, as in `net_af_packet0,iface=eth1` or a PCI address.
    pub device: String,
    /// The tunnel address; no kernel interface carries it.
    pub vtep: Ipv4Addr,
    pub prefix_length: u8,
    pub gateway: Option<Ipv4Addr>,
    /// `None` derives one from the tunnel address.
    pub mac: Option<MacAddress>,
    pub mtu: u16,
}

impl UnderlayConfig {
    pub fn underlay(&self) -> Underlay {
        let [a, b, c, d] = self.vtep.octets();
        Underlay {
            device: self.device.clone(),
            vtep: self.vtep,
            prefix_length: self.prefix_length,
            gateway: self.gateway,
            mac: self.mac.unwrap_or(MacAddress([0x02, 0x51, a, b, c, d])),
            mtu: self.mtu,
        }
    }
}

/// `config.toml` in an operator's folder; `operator.pem`, `operator.key` and `ca.pem` are beside
/// it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct OperatorConfig {
    /// Where the control service listens.
    pub service: SocketAddr,
}

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} is not a configuration", path.display())]
    Parse { path: PathBuf, source: Box<toml::de::Error> },
    #[error("cannot write {}", path.display())]
    Write { path: PathBuf, source: crate::IdentityError },
}

impl DaemonConfig {
    const FILE: &str = "plinthd.toml";

    pub fn path(state: &Path) -> PathBuf {
        state.join(Self::FILE)
    }

    pub fn load(state: &Path) -> Result<Self, ConfigError> {
        load(&Self::path(state))
    }

    pub fn save(&self, state: &Path) -> Result<(), ConfigError> {
        save(&Self::path(state), self)
    }
}

impl OperatorConfig {
    const FILE: &str = "config.toml";

    pub fn path(folder: &Path) -> PathBuf {
        folder.join(Self::FILE)
    }

    pub fn load(folder: &Path) -> Result<Self, ConfigError> {
        load(&Self::path(folder))
    }

    pub fn save(&self, folder: &Path) -> Result<(), ConfigError> {
        save(&Self::path(folder), self)
    }
}

/// Where plinthd keeps its certificates: `ca`, `service` and `node`.
pub fn tls_folder(state: &Path) -> PathBuf {
    state.join("tls")
}

fn load<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<T, ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    toml::from_str(&text)
        .map_err(|source| ConfigError::Parse { path: path.to_owned(), source: Box::new(source) })
}

fn save<T: Serialize>(path: &Path, value: &T) -> Result<(), ConfigError> {
    let text = toml::to_string(value).expect("addresses, names and numbers are TOML");
    write_file(path, &text, 0o644)
        .map_err(|source| ConfigError::Write { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_written_configuration_reads_back_and_a_mistyped_field_is_refused() {
        let folder = std::env::temp_dir().join(format!("plinth-config-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let config = DaemonConfig {
            service: Some(ServiceConfig {
                cluster: "lab".to_owned(),
                listen: "127.0.0.1:7700".parse().unwrap(),
                join: "127.0.0.1:7701".parse().unwrap(),
                vcpus_per_cpu: 4,
            }),
            node: Some(NodeConfig {
                name: "node-1".parse().unwrap(),
                listen: "127.0.0.1:7710".parse().unwrap(),
                underlay: Some(UnderlayConfig {
                    device: "net_af_packet0,iface=eth1".to_owned(),
                    vtep: Ipv4Addr::new(172, 16, 0, 1),
                    prefix_length: 24,
                    gateway: None,
                    mac: None,
                    mtu: 1500,
                }),
            }),
        };
        config.save(&folder).unwrap();
        assert_eq!(DaemonConfig::load(&folder).unwrap(), config);
        let path = DaemonConfig::path(&folder);
        let text = std::fs::read_to_string(&path).unwrap().replace("listen", "lisen");
        std::fs::write(&path, text).unwrap();
        assert!(matches!(DaemonConfig::load(&folder), Err(ConfigError::Parse { .. })));
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
