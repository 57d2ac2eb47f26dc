// SPDX-License-Identifier: Apache-2.0
//! The store itself.

/// When a change is acknowledged.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Durability {
    /// After the device's cache was flushed.
    #[default]
    Flush,
    /// When the device has taken it: its cache survives power loss.
    Device,
}
