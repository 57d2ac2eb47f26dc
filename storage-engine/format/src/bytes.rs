// SPDX-License-Identifier: Apache-2.0
//! Little-endian integers without alignment.

use bytemuck::{Pod, Zeroable};
use std::fmt;

macro_rules! little_endian {
    ($(#[$doc:meta])* $name:ident, $raw:ty, $size:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Default, Eq, PartialEq, Pod, Zeroable)]
        #[repr(transparent)]
        pub struct $name([u8; $size]);

        impl $name {
            pub const fn new(value: $raw) -> Self {
                Self(value.to_le_bytes())
            }

            pub const fn get(self) -> $raw {
                <$raw>::from_le_bytes(self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.get().fmt(f)
            }
        }
    };
}

little_endian!(
    /// 16 bits on disk.
    Le16, u16, 2
);
little_endian!(
    /// 32 bits on disk.
    Le32, u32, 4
);
little_endian!(
    /// 64 bits on disk.
    Le64, u64, 8
);
