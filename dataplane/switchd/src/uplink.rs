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
    #[error(
        "underlay.mtu is {wanted} and interface {interface} carries {found}; lower the one, or \
         raise the other: ip link set {interface} mtu {wanted}"
    )]
    InterfaceMtu { interface: String, found: u16, wanted: u16 },
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
        let (name, mtu) = match name.driver() {
            Some(AF_PACKET) => (fit_to_interface(&name, spec.mtu)?, None),
            _ => (name, Some(spec.mtu)),
        };
        let options = EthOptions { mtu, ..EthOptions::default() };
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

/// DPDK's driver for a kernel interface.
const AF_PACKET: &str = "net_af_packet";

/// What the kernel puts before a frame in a ring of packet sockets (66 bytes, packet(7) and
/// linux/if_packet.h), and Ethernet's header with a VLAN tag, rounded up.
const RING_OVERHEAD: u32 = 128;

/// Gives a kernel interface ring frames that are long enough for the MTU, unless the operator
/// has chosen them.
///
/// The driver itself says that it carries 1518 bytes and not more, whatever its frames are, so
/// it is not asked about the MTU; the interface is.
fn fit_to_interface(name: &DeviceName, mtu: u16) -> Result<DeviceName, UplinkError> {
    let interface = name.argument("iface").unwrap_or_default();
    // Without an answer the interface is missing, which opening it says better.
    let found = std::fs::read_to_string(format!("/sys/class/net/{interface}/mtu"))
        .ok()
        .and_then(|text| text.trim().parse::<u32>().ok())
        .map_or(u16::MAX, |found| u16::try_from(found).unwrap_or(u16::MAX));
    if found < mtu {
        let interface = interface.to_owned();
        return Err(UplinkError::InterfaceMtu { interface, found, wanted: mtu });
    }
    let frame = (u32::from(mtu) + RING_OVERHEAD).next_power_of_two();
    if frame <= 2048 {
        return Ok(name.clone());
    }
    Ok(name.with_argument("framesz", frame).with_argument("blocksz", frame.max(1 << 16)))
}

/// Prepares a kernel interface, and gives a descriptor that says when it has received something;
/// without it the worker looks from time to time.
fn announcer(name: &DeviceName) -> Option<Announcer> {
    if name.driver() != Some(AF_PACKET) {
        return None;
    }
    let interface = name.argument("iface")?;
    if let Err(error) = plinth_dpdk::stop_merging(interface) {
        let err = tracing::field::display(error);
        tracing::warn!(interface, err, "received packets may be merged; ethtool -K … gro off");
    }
    let opened: Result<Announcer, AnnouncerError> = Announcer::open(interface);
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
    fn ring_frames_grow_with_the_mtu_unless_they_were_chosen() {
        let fit = |text: &str, mtu| {
            let name: DeviceName = text.parse().unwrap();
            fit_to_interface(&name, mtu).unwrap().to_string()
        };
        let plain = "net_af_packet0,iface=plinth-none";
        assert_eq!(fit(plain, 1600), plain);
        assert_eq!(fit(plain, 1920), plain);
        assert_eq!(fit(plain, 1921), format!("{plain},framesz=4096,blocksz=65536"));
        assert_eq!(fit(plain, 9000), format!("{plain},framesz=16384,blocksz=65536"));
        let chosen = format!("{plain},framesz=32768");
        assert_eq!(fit(&chosen, 9000), format!("{chosen},blocksz=65536"));
    }

    #[test]
    fn an_interface_that_carries_less_is_named_with_both_remedies() {
        // The loopback device is in every namespace and carries 65536.
        let name: DeviceName = "net_af_packet0,iface=lo".parse().unwrap();
        assert!(fit_to_interface(&name, 9000).is_ok());
        let error =
            UplinkError::InterfaceMtu { interface: "u0".to_owned(), found: 1500, wanted: 1600 };
        assert!(error.to_string().ends_with("ip link set u0 mtu 1600"), "{error}");
    }

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
