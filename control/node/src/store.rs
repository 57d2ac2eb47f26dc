// SPDX-License-Identifier: Apache-2.0
//! What the agent says to plinth-stored.

use crate::keeper::{Seen, Speaker, Trouble};
use plinth_ids::{Epoch, PoolId};
use plinth_manage::Client;
use plinth_store_api::{Answer, PoolStatus, Reply, Request, StoreConfig, Verb, VolumeStatus};
use std::path::PathBuf;
use std::time::Duration;

/// For questions that look at memory only.
const LIMIT: Duration = Duration::from_secs(5);
/// For acts that write a little.
const ACT_LIMIT: Duration = Duration::from_secs(60);
/// For acts that write a whole image or format a device.
const LONG_LIMIT: Duration = Duration::from_secs(3600);

/// Asks the store, one connection a question: it may have been another process a second ago.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    socket: PathBuf,
}

/// What is in the store's pools.
#[derive(Clone, Debug, Default)]
pub(crate) struct Inventory {
    pub(crate) pools: Vec<PoolStatus>,
    pub(crate) volumes: Vec<(PoolId, VolumeStatus)>,
}

impl Store {
    pub(crate) const fn at(socket: PathBuf) -> Self {
        Self { socket }
    }

    fn ask(&self, verb: Verb, limit: Duration) -> Result<Answer, Trouble> {
        let reply: Reply = Client::connect(&self.socket, limit)?.call(&Request { id: 1, verb })?;
        reply.result.map_err(|no| Trouble::Refused { code: no.code, text: no.text })
    }

    /// Carries out a command that changes a pool.
    pub(crate) fn act(&self, verb: Verb) -> Result<(), Trouble> {
        match self.call(verb)? {
            Answer::Done | Answer::Volume(_) | Answer::Snapshot(_) => Ok(()),
            _ => Err(Trouble::Confused),
        }
    }

    /// Carries out any verb, for as long as it may take.
    pub(crate) fn call(&self, verb: Verb) -> Result<Answer, Trouble> {
        let limit = match &verb {
            Verb::VolumeImport { .. }
            | Verb::VolumeExport { .. }
            | Verb::DeltaImport { .. }
            | Verb::DeltaExport { .. }
            | Verb::PoolDiskAdd { .. }
            | Verb::PoolFormat { .. } => LONG_LIMIT,
            _ => ACT_LIMIT,
        };
        self.ask(verb, limit)
    }
}

impl Speaker for Store {
    type Config = StoreConfig;
    type Extra = Inventory;

    fn status(&mut self) -> Result<Seen, Trouble> {
        match self.ask(Verb::Status, LIMIT)? {
            Answer::Status(status) => Ok(Seen {
                process: status.process,
                version: status.version,
                epoch: status.epoch,
                text: String::new(),
            }),
            _ => Err(Trouble::Confused),
        }
    }

    fn apply(&mut self, config: StoreConfig, epoch: Epoch) -> Result<(), Trouble> {
        match self.ask(Verb::Apply(StoreConfig { epoch, ..config }), ACT_LIMIT)? {
            Answer::Applied { .. } => Ok(()),
            _ => Err(Trouble::Confused),
        }
    }

    fn extra(&mut self) -> Result<Inventory, Trouble> {
        let Answer::Pools(pools) = self.ask(Verb::Pools, LIMIT)? else {
            return Err(Trouble::Confused);
        };
        let mut inventory = Inventory { pools: Vec::new(), volumes: Vec::new() };
        for pool in pools {
            if pool.fault.is_none()
                && let Answer::Volumes(volumes) =
                    self.ask(Verb::Volumes { pool: pool.id }, LIMIT)?
            {
                inventory.volumes.extend(volumes.into_iter().map(|volume| (pool.id, volume)));
            }
            inventory.pools.push(pool);
        }
        Ok(inventory)
    }
}
