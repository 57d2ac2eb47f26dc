// SPDX-License-Identifier: Apache-2.0
//! What `plinth-perf net` can be asked for.

use anyhow::{Result, bail};
use plinth_ids::MacAddress;
use serde::{Deserialize, Serialize};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

/// Ethernet, IPv4, UDP and our own twenty-four bytes.
pub(crate) const SIZE_MIN: usize = 14 + 20 + 8 + 24;

#[derive(Clone, Debug, Deserialize, Serialize, clap::Args)]
pub(crate) struct Options {
    /// The vhost-user socket of port a.
    #[arg(long)]
    pub a: PathBuf,
    /// The vhost-user socket of port b.
    #[arg(long)]
    pub b: PathBuf,
    /// We listen on the sockets and the switch connects, as with QEMU as server (OVS).
    #[arg(long)]
    pub server: bool,
    #[arg(long, default_value = "02:00:00:00:00:0a")]
    pub mac_a: MacAddress,
    #[arg(long, default_value = "02:00:00:00:00:0b")]
    pub mac_b: MacAddress,
    #[arg(long, default_value = "10.0.0.1")]
    pub ip_a: Ipv4Addr,
    #[arg(long, default_value = "10.0.0.2")]
    pub ip_b: Ipv4Addr,
    /// Port b is the wire to another node: what comes out there is taken out of VXLAN, and what is
    /// sent there is put into VXLAN with this network number.
    #[arg(long)]
    pub vxlan: Option<u32>,
    /// With --vxlan: the switch's end of the tunnel
    #[arg(long, default_value = "172.16.0.1")]
    pub vtep: Ipv4Addr,
    /// With --vxlan: the switch's address on the wire
    #[arg(long, default_value = "02:00:00:00:01:01")]
    pub vtep_mac: MacAddress,
    /// With --vxlan: our end of the tunnel, for which ARP is answered
    #[arg(long, default_value = "172.16.0.2")]
    pub far_vtep: Ipv4Addr,
    /// With --vxlan: our address on the wire
    #[arg(long, default_value = "02:00:00:00:01:02")]
    pub far_vtep_mac: MacAddress,
    /// Conversations: UDP ports vary. With --both, b answers in those of a.
    #[arg(long, default_value_t = 1)]
    pub flows: u32,
    /// Bytes of a frame without its checksum.
    #[arg(long, default_value_t = SIZE_MIN)]
    pub size: usize,
    /// Packets a second in each direction; as many as go without.
    #[arg(long)]
    pub pps: Option<u64>,
    /// Send from b to a as well.
    #[arg(long)]
    pub both: bool,
    #[arg(long, default_value_t = 5.0)]
    pub seconds: f64,
    /// Not counted, before the run.
    #[arg(long, default_value_t = 1.0)]
    pub warm_up: f64,
    /// Use packed rings, where the backend has them.
    #[arg(long)]
    pub packed: bool,
    /// Use rings that are used in order, where the backend has them.
    #[arg(long)]
    pub in_order: bool,
    /// Use mergeable receive buffers.
    #[arg(long)]
    pub mergeable: bool,
    #[arg(long, default_value_t = 1024)]
    pub queue_size: u16,
    /// Pin to this CPU.
    #[arg(long)]
    pub cpu: Option<u32>,
    /// MiB of packet memory.
    #[arg(long, default_value_t = 256)]
    pub memory: u32,
    /// Take ordinary pages even where there are hugepages.
    #[arg(long)]
    pub ordinary_pages: bool,
    /// Write the result here as JSON, besides the summary.
    #[arg(long)]
    pub json: Option<PathBuf>,
}

impl Options {
    pub(crate) fn check(&self) -> Result<()> {
        if !(SIZE_MIN..=1514).contains(&self.size) {
            bail!("--size {}: give {SIZE_MIN} to 1514 bytes", self.size);
        }
        if !(1..=1 << 24).contains(&self.flows) {
            bail!("--flows {}: give 1 to 16777216", self.flows);
        }
        if self.vxlan.is_some_and(|vni| vni >= 1 << 24) {
            bail!("--vxlan: a network number has 24 bits");
        }
        if self.pps == Some(0) {
            bail!("--pps 0 never sends anything; leave it out for no limit");
        }
        if !self.queue_size.is_power_of_two() || self.queue_size < 64 {
            bail!("--queue-size {}: give a power of two from 64", self.queue_size);
        }
        if !(self.seconds > 0.0 && self.warm_up >= 0.0) {
            bail!("--seconds and --warm-up: give times that are not negative");
        }
        Ok(())
    }

    /// The DPDK device of one port.
    pub(crate) fn device(&self, index: usize) -> String {
        let mac_b = if self.vxlan.is_some() { self.far_vtep_mac } else { self.mac_b };
        let (path, mac): (&Path, _) =
            if index == 0 { (&self.a, self.mac_a) } else { (&self.b, mac_b) };
        let flag = |is_on| u8::from(is_on);
        format!(
            "net_virtio_user{index},path={},mac={mac},queue_size={},server={},packed_vq={},\
             in_order={},mrg_rxbuf={}",
            path.display(),
            self.queue_size,
            flag(self.server),
            flag(self.packed),
            flag(self.in_order),
            flag(self.mergeable),
        )
    }
}
