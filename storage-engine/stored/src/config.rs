// SPDX-License-Identifier: Apache-2.0
//! Whether a configuration may be carried out. What is legal here can still fail in the world:
//! that is a fault of one pool or attachment, not of the configuration.

use crate::place::Place;
use crate::refusal::ConfigRefusal;
use plinth_store_api::{CONFIG_VERSION, StoreConfig};
use std::collections::BTreeSet;

/// The most queues of one attachment.
const QUEUES_MAX: u16 = 16;

/// Checks a configuration against itself and against the one in force.
pub(crate) fn check(
    offered: &StoreConfig,
    kept: Option<&StoreConfig>,
) -> Result<(), ConfigRefusal> {
    if offered.version != CONFIG_VERSION {
        return Err(ConfigRefusal::Version { version: offered.version });
    }
    if let Some(kept) = kept {
        if offered.epoch < kept.epoch {
            return Err(ConfigRefusal::Old { offered: offered.epoch, kept: kept.epoch });
        }
        if offered.epoch == kept.epoch && offered != kept {
            return Err(ConfigRefusal::SameEpoch { epoch: kept.epoch });
        }
    }
    check_pools(offered)?;
    check_attachments(offered)
}

fn check_pools(offered: &StoreConfig) -> Result<(), ConfigRefusal> {
    let (mut pools, mut devices) = (BTreeSet::new(), BTreeSet::new());
    for pool in &offered.pools {
        if !pools.insert(pool.id) {
            return Err(ConfigRefusal::PoolTwice { pool: pool.id });
        }
        let place = Place::parse(&pool.device)
            .map_err(|source| ConfigRefusal::Place { pool: pool.id, source })?;
        if matches!(place, Place::Device(_)) && !devices.insert(&pool.device) {
            return Err(ConfigRefusal::DeviceTwice { device: pool.device.clone() });
        }
    }
    Ok(())
}

fn check_attachments(offered: &StoreConfig) -> Result<(), ConfigRefusal> {
    let (mut volumes, mut sockets) = (BTreeSet::new(), BTreeSet::new());
    for attachment in &offered.attachments {
        let (pool, volume) = (attachment.pool, attachment.volume);
        if !offered.pools.iter().any(|known| known.id == pool) {
            return Err(ConfigRefusal::PoolUnknown { pool, volume });
        }
        if !volumes.insert((pool, volume)) {
            return Err(ConfigRefusal::VolumeTwice { pool, volume });
        }
        if !sockets.insert(&attachment.socket) {
            return Err(ConfigRefusal::SocketTwice { socket: attachment.socket.clone() });
        }
        if !attachment.socket.is_absolute() {
            return Err(ConfigRefusal::SocketRelative { socket: attachment.socket.clone() });
        }
        if attachment.queues == 0 || attachment.queues > QUEUES_MAX {
            return Err(ConfigRefusal::Queues { volume, queues: attachment.queues });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use plinth_ids::{Epoch, PoolId, VolumeId};
    use plinth_store_api::{Attachment, Durability, Pool};

    fn legal() -> StoreConfig {
        let pool = |number: u32| Pool {
            id: PoolId(number),
            device: format!("/pools/{number}").into(),
            durability: Durability::Flush,
        };
        let attachment = |number: u64| Attachment {
            pool: PoolId(1),
            volume: VolumeId(number),
            socket: format!("/sockets/{number}").into(),
            queues: 1,
            is_read_only: false,
        };
        StoreConfig {
            version: CONFIG_VERSION,
            epoch: Epoch(5),
            pools: vec![pool(1), pool(2)],
            attachments: vec![attachment(1), attachment(2)],
        }
    }

    #[test]
    fn what_is_legal_is_taken_again_and_again() {
        assert!(check(&legal(), None).is_ok());
        assert!(check(&legal(), Some(&legal())).is_ok());
    }

    /// The fault of a legal configuration with one thing changed.
    fn fault(change: impl FnOnce(&mut StoreConfig)) -> ConfigRefusal {
        let mut config = legal();
        change(&mut config);
        check(&config, Some(&legal())).unwrap_err()
    }

    #[test]
    fn each_fault_has_its_own_refusal() {
        use ConfigRefusal as R;
        assert!(matches!(fault(|c| c.version = 9), R::Version { version: 9 }));
        assert!(matches!(fault(|c| c.epoch = Epoch(4)), R::Old { .. }));
        assert!(matches!(fault(|c| c.attachments.clear()), R::SameEpoch { .. }));
        let fault = |change: fn(&mut StoreConfig)| {
            fault(|config| {
                config.epoch = Epoch(6);
                change(config);
            })
        };
        assert!(matches!(fault(|c| c.pools[1].id = PoolId(1)), R::PoolTwice { .. }));
        assert!(matches!(fault(|c| c.pools[1].device = "/pools/1".into()), R::DeviceTwice { .. }));
        assert!(matches!(fault(|c| c.pools[1].device = "pool".into()), R::Place { .. }));
        assert!(matches!(fault(|c| c.attachments[1].volume = VolumeId(1)), R::VolumeTwice { .. }));
        assert!(matches!(
            fault(|c| c.attachments[1].socket = "/sockets/1".into()),
            R::SocketTwice { .. }
        ));
        assert!(matches!(
            fault(|c| c.attachments[1].socket = "s".into()),
            R::SocketRelative { .. }
        ));
        assert!(matches!(fault(|c| c.attachments[1].pool = PoolId(9)), R::PoolUnknown { .. }));
        assert!(matches!(fault(|c| c.attachments[1].queues = 17), R::Queues { queues: 17, .. }));
        assert!(matches!(fault(|c| c.attachments[1].queues = 0), R::Queues { queues: 0, .. }));
    }
}
