// SPDX-License-Identifier: Apache-2.0
//! Serving a guest's NIC on its socket.

use plinth_backends::net::{NetClass, NetOptions};
use plinth_backends::{
    Device, DeviceOptions, DeviceToken, HandedDevice, ServeError, Shrinkable, WorkerLink,
};
use plinth_ids::{MacAddress, PortId};
use plinth_switch_api::GuestPort as PortConfig;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What a served NIC is to its guest. When it changes, the NIC is served anew.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct NicSpec {
    pub(crate) socket: PathBuf,
    pub(crate) mac: MacAddress,
    pub(crate) mtu: u16,
    pub(crate) queue_pairs: u16,
}

impl From<&PortConfig> for NicSpec {
    fn from(port: &PortConfig) -> Self {
        let PortConfig { socket, mac, mtu, queue_pairs, .. } = port;
        Self { socket: socket.clone(), mac: *mac, mtu: *mtu, queue_pairs: *queue_pairs }
    }
}

/// A NIC whose socket is served, or, for a moment, was.
#[derive(Debug)]
pub(crate) struct Nic {
    pub(crate) spec: NicSpec,
    pub(crate) token: DeviceToken,
    pub(crate) device: Option<Device>,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum NicError {
    #[error("{port}: socket {} is not an absolute path", socket.display())]
    Relative { port: PortId, socket: PathBuf },
    #[error("{port}: the folder of socket {} cannot be made", socket.display())]
    Folder { port: PortId, socket: PathBuf, source: io::Error },
    #[error("{port}: the socket cannot be served")]
    Serve { port: PortId, source: ServeError },
}

/// Serves NICs, all to one worker.
#[derive(Debug)]
pub(crate) struct Nics {
    link: WorkerLink,
    shrinkable: Shrinkable,
    next_token: AtomicU64,
}

impl Nics {
    pub(crate) const fn new(link: WorkerLink, trust_frontends: bool) -> Self {
        let shrinkable = if trust_frontends { Shrinkable::Accept } else { Shrinkable::Refuse };
        Self { link, shrinkable, next_token: AtomicU64::new(1) }
    }

    /// A token that no NIC of this process had before.
    pub(crate) fn token(&self) -> DeviceToken {
        // Relaxed: only that numbers differ matters.
        DeviceToken(self.next_token.fetch_add(1, Ordering::Relaxed))
    }

    /// Listens on the socket, or goes on with a device that another process had there. The worker
    /// must know the token already: a frontend may be waiting.
    pub(crate) fn serve(
        &self,
        port: PortId,
        spec: &NicSpec,
        token: DeviceToken,
        handed: Option<HandedDevice>,
    ) -> Result<Device, NicError> {
        let socket = spec.socket.clone();
        if !socket.is_absolute() {
            return Err(NicError::Relative { port, socket });
        }
        if let Some(folder) = socket.parent() {
            std::fs::create_dir_all(folder).map_err(|source| NicError::Folder {
                port,
                socket: socket.clone(),
                source,
            })?;
        }
        let NicSpec { mac, mtu, queue_pairs, .. } = *spec;
        let class = NetClass::new(NetOptions { mac: mac.0, mtu, queue_pairs });
        let options = DeviceOptions { socket, token, shrinkable: self.shrinkable };
        let (class, link) = (Arc::new(class), self.link.clone());
        let served = match handed {
            Some(handed) if handed.path() == options.socket => {
                Device::take_over(options, class, link, handed)
            }
            Some(_) | None => Device::serve(options, class, link),
        };
        served.map_err(|source| NicError::Serve { port, source })
    }
}
