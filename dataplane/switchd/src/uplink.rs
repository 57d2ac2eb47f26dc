// SPDX-License-Identifier: Apache-2.0
//! Opening the device to the underlay.

use plinth_dpdk::{
    Announcer, AnnouncerError, DeviceName, DeviceNameError, Eal, EthDev, EthOptions, Mempool,
    MempoolError, OpenError,
};
use plinth_obs::Chain;
use plinth_ports::{EthernetPort, Port};
use plinth_switch_api::Underlay;
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

/// What an open device was opened with.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct UplinkSpec {
    pub(crate) device: String,
    pub(crate) mtu: u16,
}

impl From<&Underlay> for UplinkSpec {
    fn from(underlay: &Underlay) -> Self {
        Self { device: underlay.device.clone(), mtu: underlay.mtu }
    }
}

/// An open device: its control end. Its packet end is the worker's.
#[derive(Debug)]
pub(crate) struct Uplink {
    pub(crate) spec: UplinkSpec,
    pub(crate) device: EthDev,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum UplinkError {
    #[error("underlay.device is not understood")]
    Name { source: DeviceNameError },
    #[error("underlay.device cannot be given packet memory; raise --memory-mb or lower the MTU")]
    Pool { source: MempoolError },
    #[error("underlay.device cannot be opened")]
    Open { source: OpenError },
}

/// Opens devices, with a pool for each size of packet that was ever asked for: pools are never
/// freed, so they are used again.
#[derive(Debug)]
pub(crate) struct Opener {
    eal: Eal,
    memory_mb: u32,
    pools: Mutex<BTreeMap<u16, Mempool>>,
}

/// Ethernet with a VLAN tag and the checksum that some devices leave in the buffer.
const FRAME_OVERHEAD: u16 = 14 + 4 + 4;

/// Room of the smallest buffers, which is what most drivers expect at least.
const ROOM_MIN: u16 = 2048;

impl Opener {
    pub(crate) const fn new(eal: Eal, memory_mb: u32) -> Self {
        Self { eal, memory_mb, pools: Mutex::new(BTreeMap::new()) }
    }

    /// Opens the device and gives its two ends.
    pub(crate) fn open(&self, spec: &UplinkSpec) -> Result<(Uplink, Port), UplinkError> {
        let name: DeviceName =
            spec.device.parse().map_err(|source| UplinkError::Name { source })?;
        let pool = self.pool(spec.mtu).map_err(|source| UplinkError::Pool { source })?;
        let options = EthOptions { mtu: Some(spec.mtu), ..EthOptions::default() };
        let (device, queue) = EthDev::open(self.eal, &name, &pool, &options)
            .map_err(|source| UplinkError::Open { source })?;
        let announcer = announcer(&name);
        let port = EthernetPort::new(queue, pool, announcer);
        Ok((Uplink { spec: spec.clone(), device }, Port::Ethernet(Box::new(port))))
    }

    fn pool(&self, mtu: u16) -> Result<Mempool, MempoolError> {
        let room = mtu
            .saturating_add(FRAME_OVERHEAD)
            .max(ROOM_MIN)
            .checked_next_multiple_of(1024)
            .unwrap_or(u16::MAX - 1024);
        let mut pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pool) = pools.get(&room) {
            return Ok(*pool);
        }
        let pool = Mempool::new(self.eal, buffer_count(self.memory_mb, room), room)?;
        pools.insert(room, pool);
        Ok(pool)
    }
}

/// Buffers that take a quarter of packet memory, so that a change of the MTU finds room for
/// another pool: a power of two less one, as pools like it, and no more than are ever in use.
fn buffer_count(memory_mb: u32, room: u16) -> u32 {
    // Beside its room a buffer has headroom and headers.
    let each = u64::from(room) + 384;
    let fit = u64::from(memory_mb) * 1024 * 1024 / 4 / each;
    let fit = u32::try_from(fit).unwrap_or(u32::MAX).clamp(1024, 16_384);
    (1 << fit.ilog2()) - 1
}

/// For a kernel interface, a descriptor that says when it has received something; without it the
/// worker looks from time to time.
fn announcer(name: &DeviceName) -> Option<Announcer> {
    if name.driver() != Some("net_af_packet") {
        return None;
    }
    let opened: Result<Announcer, AnnouncerError> = Announcer::open(name.argument("iface")?);
    opened
        .inspect_err(|error| {
            tracing::warn!(err = display(Chain(error)), "the uplink is polled by a timer");
        })
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_takes_a_quarter_of_memory_at_most() {
        assert_eq!(buffer_count(128, 2048), 8191);
        assert_eq!(buffer_count(128, 10_240), 2047);
        for (memory_mb, room) in [(128, 2048), (128, 10_240), (512, 10_240), (1024, 2048)] {
            let count = buffer_count(memory_mb, room);
            let taken = u64::from(count) * (u64::from(room) + 384);
            assert!(taken <= u64::from(memory_mb) * 256 * 1024 && count <= 16_383, "{count}");
        }
    }
}
