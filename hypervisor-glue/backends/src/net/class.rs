// SPDX-License-Identifier: Apache-2.0
//! What a virtio-net device says of itself.

use plinth_vhost::{ConfigRefusal, DeviceClass};

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
        unimplemented!()
    }

    fn queue_count(&self) -> u16 {
        self.options.queue_pairs * 2
    }

    fn keeps_inflight(&self) -> bool {
        false
    }

    fn read_config(&self, _offset: usize, _into: &mut [u8]) {
        unimplemented!()
    }

    fn write_config(&self, offset: usize, bytes: &[u8]) -> Result<(), ConfigRefusal> {
        Err(ConfigRefusal { offset, length: bytes.len() })
    }
}
