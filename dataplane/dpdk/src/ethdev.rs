// SPDX-License-Identifier: Apache-2.0
//! An Ethernet device with one queue each way.

use crate::{Bus, DeviceName, Eal, Errno, Mbuf, Mempool, log};
use plinth_dpdk_sys::{self as sys, rte_mbuf};
use plinth_ids::MacAddress;
use std::ffi::CStr;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Packets that one call receives or sends at most.
pub const BURST_MAX: usize = 32;

/// DPDK's functions for opening and closing devices are not for two threads at a time.
static CONTROL: Mutex<()> = Mutex::new(());

fn control() -> MutexGuard<'static, ()> {
    CONTROL.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How a device is opened.
#[derive(Clone, Copy, Debug)]
pub struct EthOptions {
    /// Descriptors of each queue; the device may take another number.
    pub receive_descriptors: u16,
    pub send_descriptors: u16,
    /// Largest IP packet, in bytes; `None` leaves what the device has.
    pub mtu: Option<u16>,
    /// Take frames for every address. Needed where the switch has a MAC address that is not
    /// the device's.
    pub is_promiscuous: bool,
}

impl Default for EthOptions {
    fn default() -> Self {
        Self { receive_descriptors: 1024, send_descriptors: 1024, mtu: None, is_promiscuous: true }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("device {device} is open already; close it or choose another name")]
    OpenBefore { device: String },
    #[error(
        "device {device} cannot be attached (DPDK printed: {log}); check that the interface or \
         PCI device is there and that this process may use it"
    )]
    Attach { device: String, log: String, source: Errno },
    #[error("device {device} is there but is not an Ethernet device of that name")]
    NotEthernet { device: String, source: Errno },
    #[error("device {device} does not take {step} (DPDK printed: {log})")]
    SetUp { device: String, step: &'static str, log: String, source: Errno },
    #[error("device {device} does not take an MTU of {mtu} (DPDK printed: {log}); lower the MTU")]
    Mtu { device: String, mtu: u16, log: String, source: Errno },
    #[error("device {device} does not start (DPDK printed: {log}); is the interface up?")]
    Start { device: String, log: String, source: Errno },
}

/// What the device says of its link.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Link {
    pub is_up: bool,
    pub speed_mbps: u32,
}

/// The device's own counters.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct EthStats {
    pub received_packets: u64,
    pub received_bytes: u64,
    pub sent_packets: u64,
    pub sent_bytes: u64,
    /// Packets that came while the queue was full.
    pub missed: u64,
    pub receive_errors: u64,
    pub send_errors: u64,
    /// Packets that came while the pool was empty.
    pub no_buffer: u64,
}

/// A device that is started. Its control end: questions, from any thread.
#[derive(Clone, Debug)]
pub struct EthDev {
    port: Arc<Port>,
}

/// The device's packet end, for one thread at a time.
#[derive(Debug)]
pub struct EthQueue {
    port: Arc<Port>,
}

/// A port id that we opened. Stopped, closed and detached when the last owner goes.
#[derive(Debug)]
struct Port {
    id: u16,
    name: DeviceName,
    is_started: bool,
    /// Whether we plugged it in; a PCI device that DPDK found at its start stays attached.
    is_ours: bool,
}

impl EthDev {
    /// Attaches the device, sets up one receive and one send queue, and starts it. Packets are
    /// received into `pool`.
    pub fn open(
        _eal: Eal,
        name: &DeviceName,
        pool: &Mempool,
        options: &EthOptions,
    ) -> Result<(Self, EthQueue), OpenError> {
        let guard = control();
        // What was printed before is not about this device.
        let _ = log::take();
        let mut port = attach(name)?;
        let result = set_up(&port, pool, options);
        // Dropping the port takes the lock.
        drop(guard);
        result?;
        port.is_started = true;
        let port = Arc::new(port);
        Ok((Self { port: Arc::clone(&port) }, EthQueue { port }))
    }

    pub fn name(&self) -> &DeviceName {
        &self.port.name
    }

    /// The device's own address. A virtual device may have one that was drawn at random.
    pub fn mac(&self) -> MacAddress {
        let mut address = sys::rte_ether_addr::default();
        // SAFETY: the port is open while `self` is there; DPDK writes one address.
        let code = unsafe { sys::rte_eth_macaddr_get(self.port.id, &raw mut address) };
        debug_assert_eq!(code, 0, "the port is open");
        MacAddress(address.addr_bytes)
    }

    pub fn link(&self) -> Link {
        let mut link = sys::rte_eth_link::default();
        let _guard = control();
        // SAFETY: the port is open while `self` is there; DPDK writes one link.
        let code = unsafe { sys::rte_eth_link_get_nowait(self.port.id, &raw mut link) };
        Link { is_up: code == 0 && link.link_status() != 0, speed_mbps: link.link_speed }
    }

    pub fn stats(&self) -> EthStats {
        let mut stats = sys::rte_eth_stats::default();
        let _guard = control();
        // SAFETY: the port is open while `self` is there; DPDK writes one set of counters.
        let code = unsafe { sys::rte_eth_stats_get(self.port.id, &raw mut stats) };
        if code != 0 {
            return EthStats::default();
        }
        EthStats {
            received_packets: stats.ipackets,
            received_bytes: stats.ibytes,
            sent_packets: stats.opackets,
            sent_bytes: stats.obytes,
            missed: stats.imissed,
            receive_errors: stats.ierrors,
            send_errors: stats.oerrors,
            no_buffer: stats.rx_nombuf,
        }
    }

    /// Largest IP packet, in bytes, that the device says it carries.
    pub fn mtu(&self) -> u16 {
        let mut mtu = 0;
        // SAFETY: the port is open while `self` is there; DPDK writes one number.
        let code = unsafe { sys::rte_eth_dev_get_mtu(self.port.id, &raw mut mtu) };
        debug_assert_eq!(code, 0, "the port is open");
        mtu
    }
}

impl EthQueue {
    /// Pushes received packets onto `into`, at most [`BURST_MAX`] and never more than `into` has
    /// room for without growing. Returns how many. A packet of several buffers that do not fit
    /// one is given back to its pool and counted in `oversized`.
    #[inline]
    pub fn receive(&mut self, into: &mut Vec<Mbuf>, oversized: &mut u64) -> usize {
        let room = burst(into.capacity() - into.len());
        let mut raw = [std::ptr::null_mut::<rte_mbuf>(); BURST_MAX];
        // SAFETY: the port is started while `self` is there, queue 0 exists, DPDK writes at most
        // `room` pointers into an array of at least as many, and `&mut self` keeps a second
        // thread off the queue: there is one `EthQueue` a port and it is no `Clone`.
        let count = unsafe { sys::plinth_rx_burst(self.port.id, 0, raw.as_mut_ptr(), room) };
        let before = into.len();
        for &mbuf in &raw[..usize::from(count).min(BURST_MAX)] {
            // SAFETY: what a device gives is valid, never null and ours from here on.
            let mut mbuf = unsafe { Mbuf::from_raw(NonNull::new_unchecked(mbuf)) };
            if mbuf.make_one() {
                into.push(mbuf);
            } else {
                *oversized += 1;
            }
        }
        into.len() - before
    }

    /// Sends packets from the front of `from`, at most [`BURST_MAX`], and takes out those that
    /// the device has taken. Returns how many. What is left may be sent again or dropped.
    #[inline]
    pub fn send(&mut self, from: &mut Vec<Mbuf>) -> usize {
        let offered = burst(from.len());
        // SAFETY: `Mbuf` is a transparent non-null pointer, so the vector's first `offered`
        // entries are as many valid pointers. The port is started while `self` is there, queue
        // 0 exists, and `&mut self` keeps a second thread off it.
        let sent = unsafe {
            sys::plinth_tx_burst(
                self.port.id,
                0,
                from.as_mut_ptr().cast::<*mut rte_mbuf>(),
                offered,
            )
        };
        let sent = usize::from(sent.min(offered));
        let left = from.len() - sent;
        // SAFETY: the first `sent` buffers belong to the device from here on and must not be
        // dropped: the rest is moved over them, within the vector's initialized part, and the
        // length says what is left. Nothing between the two can panic.
        unsafe {
            std::ptr::copy(from.as_ptr().add(sent), from.as_mut_ptr(), left);
            from.set_len(left);
        }
        sent
    }
}

/// At most a burst, as DPDK counts.
#[inline]
fn burst(count: usize) -> u16 {
    u16::try_from(count.min(BURST_MAX)).unwrap_or(0)
}

impl Drop for Port {
    fn drop(&mut self) {
        let _guard = control();
        if self.is_started {
            // SAFETY: the port is open, and no queue is in use: both ends are gone.
            unsafe { sys::rte_eth_dev_stop(self.id) };
        }
        // SAFETY: the port is open and stopped, and the id is not used again by us.
        unsafe { sys::rte_eth_dev_close(self.id) };
        if self.is_ours {
            // SAFETY: both texts are zero-terminated and only read.
            unsafe {
                sys::rte_eal_hotplug_remove(
                    self.name.bus_name().as_ptr(),
                    self.name.name().as_ptr(),
                )
            };
        }
        // A driver's complaint at the end explains nothing that comes later.
        let _ = log::take();
    }
}

/// The port of that name, if DPDK has one.
fn find(name: &CStr) -> Result<u16, Errno> {
    let mut id = 0;
    // SAFETY: a zero-terminated text that is only read; DPDK writes one number.
    match unsafe { sys::rte_eth_dev_get_port_by_name(name.as_ptr(), &raw mut id) } {
        0 => Ok(id),
        code => Err(Errno::from_return(code)),
    }
}

fn attach(name: &DeviceName) -> Result<Port, OpenError> {
    let device = || name.to_string();
    let port = |id, is_ours| Port { id, name: name.clone(), is_started: false, is_ours };
    if let Ok(id) = find(name.name()) {
        return match name.bus() {
            Bus::Vdev => Err(OpenError::OpenBefore { device: device() }),
            // DPDK attaches the PCI devices that it finds at its start.
            Bus::Pci => Ok(port(id, false)),
        };
    }
    // SAFETY: three zero-terminated texts, which DPDK copies.
    let code = unsafe {
        sys::rte_eal_hotplug_add(
            name.bus_name().as_ptr(),
            name.name().as_ptr(),
            name.arguments().as_ptr(),
        )
    };
    if code != 0 {
        let source = Errno::from_return(code);
        return Err(OpenError::Attach { device: device(), log: log::take(), source });
    }
    match find(name.name()) {
        Ok(id) => Ok(port(id, true)),
        Err(source) => {
            // SAFETY: as in `Port::drop`; there is no port to close.
            unsafe { sys::rte_eal_hotplug_remove(name.bus_name().as_ptr(), name.name().as_ptr()) };
            Err(OpenError::NotEthernet { device: device(), source })
        }
    }
}

fn set_up(port: &Port, pool: &Mempool, options: &EthOptions) -> Result<(), OpenError> {
    let id = port.id;
    let device = || port.name.to_string();
    let step = |step, code| match code {
        0 => Ok(()),
        code => {
            let source = Errno::from_return(code);
            Err(OpenError::SetUp { device: device(), step, log: log::take(), source })
        }
    };
    let config = sys::rte_eth_conf::default();
    // SAFETY: the port is attached and not started; the configuration is only read.
    step("one queue each way", unsafe { sys::rte_eth_dev_configure(id, 1, 1, &raw const config) })?;
    if let Some(mtu) = options.mtu {
        // SAFETY: the port is configured and not started.
        match unsafe { sys::rte_eth_dev_set_mtu(id, mtu) } {
            // A device without a link of its own carries whatever fits its buffers.
            0 => {}
            code if Errno::from_return(code).0 == libc::ENOTSUP => {}
            code => {
                let source = Errno::from_return(code);
                return Err(OpenError::Mtu { device: device(), mtu, log: log::take(), source });
            }
        }
    }
    let (mut receive, mut send) = (options.receive_descriptors, options.send_descriptors);
    // SAFETY: the port is configured; DPDK reads and writes two numbers.
    let code =
        unsafe { sys::rte_eth_dev_adjust_nb_rx_tx_desc(id, &raw mut receive, &raw mut send) };
    step("the number of descriptors", code)?;
    // SAFETY: the port is attached while `port` is there.
    let socket = unsafe { sys::rte_eth_dev_socket_id(id) }.cast_unsigned();
    // SAFETY: queue 0 was configured above; the pool lives until the process ends; without a
    // configuration of the queue the device takes its own.
    let code = unsafe {
        sys::rte_eth_rx_queue_setup(id, 0, receive, socket, std::ptr::null(), pool.as_ptr())
    };
    step("a receive queue", code)?;
    // SAFETY: as above.
    let code = unsafe { sys::rte_eth_tx_queue_setup(id, 0, send, socket, std::ptr::null()) };
    step("a send queue", code)?;
    // SAFETY: the port and both of its queues are set up.
    let code = unsafe { sys::rte_eth_dev_start(id) };
    if code != 0 {
        let source = Errno::from_return(code);
        return Err(OpenError::Start { device: device(), log: log::take(), source });
    }
    if options.is_promiscuous {
        // A device that cannot filter says that it cannot be told, and takes everything.
        //
        // SAFETY: the port is started.
        unsafe { sys::rte_eth_promiscuous_enable(id) };
    }
    Ok(())
}
