// SPDX-License-Identifier: Apache-2.0
//! What the volumes of a pool are asked and what they answer.

use plinth_ids::{Name, VolumeId};
use plinth_store::{IoBuffer, StoreRefusal};

/// The most bytes that one read or write moves.
pub const REQUEST_BYTES_MAX: u32 = 4 << 20;

/// The caller's name for a request. It comes back with the completion.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct VolumeTag(pub u64);

/// An attached volume. Void after it was detached.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct VolumeHandle(pub u32);

/// What a new volume is to be.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct VolumeSpec {
    pub volume: VolumeId,
    pub name: Name,
    /// Bytes, a multiple of 512, at least 512.
    pub size: u64,
    /// Seconds since 1970, as the caller's clock has it.
    pub created_at: u64,
}

/// One request. Offsets and lengths are bytes, multiples of 512.
///
/// The buffer of a read or write covers whole blocks: the byte at `offset` of the volume is the
/// byte at `offset % 4096` of the buffer, whose length is at least `offset % 4096 + length`
/// rounded up to 4096. One request moves at most 4 MiB.
#[derive(Debug)]
pub enum VolumeRequest {
    Read {
        volume: VolumeHandle,
        offset: u64,
        length: u32,
        buffer: IoBuffer,
    },
    Write {
        volume: VolumeHandle,
        offset: u64,
        length: u32,
        buffer: IoBuffer,
    },
    /// The range reads as zeros afterwards; whole units are given back. Any length.
    Zero {
        volume: VolumeHandle,
        offset: u64,
        length: u64,
    },
    /// The same as `Zero` for whole blocks; what is left at the ends is not touched.
    Discard {
        volume: VolumeHandle,
        offset: u64,
        length: u64,
    },
    /// Every acknowledged write is durable afterwards, on the device.
    Flush {
        volume: VolumeHandle,
    },
    /// Idempotent for an equal specification.
    Create {
        spec: VolumeSpec,
    },
    /// A volume with the contents of `source`, at least as large; units are shared.
    Clone {
        source: VolumeId,
        spec: VolumeSpec,
    },
    /// Attached volumes grow too. A smaller size is refused, the same size is done already.
    Grow {
        volume: VolumeId,
        size: u64,
        now: u64,
    },
    /// Refused while attached. Goes on by itself after a restart.
    Delete {
        volume: VolumeId,
    },
}

/// The end of one request.
#[derive(Debug)]
pub struct VolumeCompletion {
    pub tag: VolumeTag,
    /// The buffer of a read or write, also when it failed.
    pub buffer: Option<IoBuffer>,
    pub result: Result<(), VolumeRefusal>,
}

/// Why a request was not carried out.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum VolumeRefusal {
    #[error("there is no such volume")]
    NotFound,
    #[error("a volume of this number exists with another name or size")]
    Exists,
    #[error("a volume of this name exists")]
    NameTaken,
    #[error("the size must be a multiple of 512, at least 512 and at most 16 PiB")]
    BadSize,
    #[error("a volume does not shrink")]
    Shrink,
    #[error("the range is not whole sectors inside the volume, or moves more than 4 MiB")]
    BadRange,
    #[error("the buffer is shorter than the blocks of the range")]
    ShortBuffer,
    #[error("the handle is not that of an attached volume")]
    BadHandle,
    #[error("the volume is attached: detach it first")]
    Attached,
    #[error("the volume is being made, cloned or deleted")]
    Busy,
    #[error("the volumes are still being read: try again")]
    NotReady,
    #[error("the header of the volume cannot be understood")]
    BadHeader,
    #[error("the pool holds as many volumes as it can")]
    TooMany,
    #[error("the store refused")]
    Store(#[from] StoreRefusal),
}

/// One volume, as the pool knows it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct VolumeStatus {
    pub volume: VolumeId,
    pub name: Name,
    /// Bytes.
    pub size: u64,
    /// Bytes of the units that the volume's objects have, shared ones included.
    pub written: u64,
    pub objects: u64,
    pub created_at: u64,
    pub updated_at: u64,
    pub is_attached: bool,
}
