// SPDX-License-Identifier: Apache-2.0
//! What a virtio-net device says of itself.

use crate::config::ConfigSpace;
use plinth_vhost::{ConfigRefusal, DeviceClass};
use std::mem::{offset_of, size_of};
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6,
    VIRTIO_NET_F_MAC, VIRTIO_NET_F_MQ, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU,
    VIRTIO_NET_F_STATUS, VIRTIO_NET_S_LINK_UP, virtio_net_config,
};

/// The NIC as its owner wants it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct NetOptions {
    pub mac: [u8; 6],
    /// Largest IP packet in bytes.
    pub mtu: u16,
    /// 1 to 8.
    pub queue_pairs: u16,
}

/// For [`plinth_vhost::Device::serve`].
#[derive(Debug)]
pub struct NetClass {
    options: NetOptions,
}

impl NetClass {
    pub fn new(options: NetOptions) -> Self {
        Self { options }
    }
}

impl DeviceClass for NetClass {
    fn features(&self) -> u64 {
        let mq = if self.options.queue_pairs > 1 { 1 << VIRTIO_NET_F_MQ } else { 0 };
        1 << VIRTIO_NET_F_CSUM
            | 1 << VIRTIO_NET_F_GUEST_CSUM
            | 1 << VIRTIO_NET_F_MTU
            | 1 << VIRTIO_NET_F_MAC
            | 1 << VIRTIO_NET_F_MRG_RXBUF
            | 1 << VIRTIO_NET_F_HOST_TSO4
            | 1 << VIRTIO_NET_F_HOST_TSO6
            | 1 << VIRTIO_NET_F_HOST_ECN
            | 1 << VIRTIO_NET_F_GUEST_TSO4
            | 1 << VIRTIO_NET_F_GUEST_TSO6
            | 1 << VIRTIO_NET_F_GUEST_ECN
            | 1 << VIRTIO_NET_F_STATUS
            | mq
    }

    fn queue_count(&self) -> u16 {
        self.options.queue_pairs * 2
    }

    fn keeps_inflight(&self) -> bool {
        true
    }

    fn takes_packed(&self) -> bool {
        true
    }

    fn offers_config(&self) -> bool {
        false
    }

    fn read_config(&self, offset: usize, into: &mut [u8]) {
        let link_up = u16::try_from(VIRTIO_NET_S_LINK_UP).expect("the bits of a 16-bit field");
        let mut space = ConfigSpace::<{ size_of::<virtio_net_config>() }>::new();
        space.put(offset_of!(virtio_net_config, mac), self.options.mac);
        space.put(offset_of!(virtio_net_config, status), link_up.to_le_bytes());
        space.put(
            offset_of!(virtio_net_config, max_virtqueue_pairs),
            self.options.queue_pairs.to_le_bytes(),
        );
        space.put(offset_of!(virtio_net_config, mtu), self.options.mtu.to_le_bytes());
        space.read(offset, into);
    }

    fn write_config(&self, offset: usize, bytes: &[u8]) -> Result<(), ConfigRefusal> {
        Err(ConfigRefusal { offset, length: bytes.len() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_space_is_that_of_the_specification() {
        let class =
            NetClass::new(NetOptions { mac: [2, 0, 0, 0, 0, 9], mtu: 1450, queue_pairs: 2 });
        let mut bytes = [0xEE; 16];
        class.read_config(0, &mut bytes);
        assert_eq!(bytes, [2, 0, 0, 0, 0, 9, 1, 0, 2, 0, 0xAA, 0x05, 0, 0, 0, 0]);
        assert_ne!(class.features() & 1 << VIRTIO_NET_F_MQ, 0);
        assert_eq!(class.queue_count(), 4);
        assert!(class.write_config(0, &[1]).is_err());
    }
}
