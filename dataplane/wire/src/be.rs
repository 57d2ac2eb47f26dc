// SPDX-License-Identifier: Apache-2.0
//! Integers in network order with alignment 1.

use bytemuck::{Pod, Zeroable};

/// 16 bits in network order.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Pod, Zeroable)]
#[repr(transparent)]
pub struct Be16([u8; 2]);

/// 32 bits in network order.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Pod, Zeroable)]
#[repr(transparent)]
pub struct Be32([u8; 4]);

impl Be16 {
    pub const fn new(value: u16) -> Self {
        Self(value.to_be_bytes())
    }

    pub const fn get(self) -> u16 {
        u16::from_be_bytes(self.0)
    }
}

impl Be32 {
    pub const fn new(value: u32) -> Self {
        Self(value.to_be_bytes())
    }

    pub const fn get(self) -> u32 {
        u32::from_be_bytes(self.0)
    }
}
