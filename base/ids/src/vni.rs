// SPDX-License-Identifier: Apache-2.0
//! The 24-bit segment id of VXLAN (RFC 7348, section 5).

use serde::{Deserialize, Serialize};
use std::fmt;

/// A VXLAN network identifier. In Plinth one VNI is one VPC.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct Vni(u32);

#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("VNI {raw} does not fit 24 bits (largest is {})", Vni::MAX)]
pub struct VniError {
    raw: u32,
}

impl Vni {
    pub const MAX: u32 = (1 << 24) - 1;

    /// `None` when `raw` does not fit 24 bits.
    pub const fn new(raw: u32) -> Option<Self> {
        if raw <= Self::MAX { Some(Self(raw)) } else { None }
    }

    pub const fn get(self) -> u32 {
        self.0
    }
}

impl TryFrom<u32> for Vni {
    type Error = VniError;

    fn try_from(raw: u32) -> Result<Self, VniError> {
        Self::new(raw).ok_or(VniError { raw })
    }
}

impl From<Vni> for u32 {
    fn from(vni: Vni) -> Self {
        vni.0
    }
}

impl fmt::Display for Vni {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_vni_has_24_bits() {
        assert_eq!(Vni::try_from(0xff_ffff).map(Vni::get), Ok(0xff_ffff));
        assert_eq!(Vni::try_from(0x100_0000), Err(VniError { raw: 0x100_0000 }));
    }
}
