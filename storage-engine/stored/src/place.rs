// SPDX-License-Identifier: Apache-2.0
//! Where a pool lives, and the disk that is opened there.

use crate::meter::{Burden, DiskMeter};
use crate::seat::DiskSeat;
use plinth_disks::flat::FlatDisk;
use plinth_disks::uring::{DEPTH, Mode, OpenError, UringDisk, UringDiskError};
use plinth_span::{Member, Span};
use plinth_store::{Disk, DiskCompletion, DiskGeometry, DiskRequest, DiskTag, Store};
use plinth_volume::Volumes;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A device that is in use may be one whose last owner was just killed: its rings, which hold the
/// device, are taken down by the kernel a little after the process.
const IN_USE_PATIENCE: Duration = Duration::from_secs(2);

/// How long a device may answer nothing while a pool is formatted, mounted or unmounted, which
/// wait for nothing else: longer than a disk that spins up or a path that fails over takes.
const PATIENCE: Duration = Duration::from_secs(30);

/// The same where the owner is known to be dead. Whoever mends comes back after that.
const LINGERS_PATIENCE: Duration = Duration::from_secs(10);

/// The largest memory disk: more is a slip of the pen.
const MEMORY_MAX: u64 = 1 << 40;

/// The volumes of a pool, on their store.
pub(crate) type PoolVolumes = Volumes<Span<DiskSeat>>;

/// The store of one disk.
pub(crate) type DiskStore = Store<PoolDisk>;

/// A mounted disk that is to be of a pool.
pub(crate) type DiskMember = Member<DiskSeat>;

/// The device of a pool.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Place {
    Device(PathBuf),
    /// `memory:SIZE`: gone with the process, empty at every start. For measuring only.
    Memory {
        size: u64,
    },
    /// `null:SIZE`: a memory disk for what volumes keep about themselves, on which guests' requests
    /// are answered at once and move no data. For measuring rings and dispatch only.
    Null {
        size: u64,
    },
}

#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum PlaceError {
    #[error("{path:?} is not an absolute path and neither memory:SIZE nor null:SIZE")]
    NotAbsolute { path: PathBuf },
    #[error(
        "{text:?} is no size of a memory disk: write a number of KiB, MiB or GiB up to 1024GiB, \
         such as memory:1GiB"
    )]
    Size { text: String },
}

impl Place {
    pub(crate) fn parse(path: &Path) -> Result<Self, PlaceError> {
        if let Some(size) = path.to_str().and_then(|text| text.strip_prefix("memory:")) {
            let fault = || PlaceError::Size { text: size.to_owned() };
            return Ok(Self::Memory { size: parse_size(size).ok_or_else(fault)? });
        }
        if let Some(size) = path.to_str().and_then(|text| text.strip_prefix("null:")) {
            let fault = || PlaceError::Size { text: size.to_owned() };
            return Ok(Self::Null { size: parse_size(size).ok_or_else(fault)? });
        }
        if path.is_absolute() {
            Ok(Self::Device(path.into()))
        } else {
            Err(PlaceError::NotAbsolute { path: path.into() })
        }
    }

    /// Opens the disk, which is given up when it hangs. Blocks, so not for the worker's thread.
    pub(crate) fn open(&self) -> Result<PoolDisk, UringDiskError> {
        let bare = match self {
            Self::Memory { size } => BareDisk::Memory(memory(*size)?),
            Self::Null { size } => BareDisk::Null(memory(*size)?),
            Self::Device(path) => BareDisk::Uring(Box::new(open_patiently(path)?)),
        };
        let mut disk = PoolDisk::from(bare);
        disk.be_patient(true);
        Ok(disk)
    }
}

fn memory(length: u64) -> Result<FlatDisk, UringDiskError> {
    FlatDisk::open(length).map_err(|source| UringDiskError::Memory { length, source })
}

fn open_patiently(path: &Path) -> Result<UringDisk, UringDiskError> {
    let started = Instant::now();
    loop {
        match UringDisk::open(path, Mode::Worker, DEPTH) {
            Err(UringDiskError::Open(OpenError::InUse { .. }))
                if started.elapsed() < IN_USE_PATIENCE =>
            {
                std::thread::sleep(Duration::from_millis(10));
            }
            Err(UringDiskError::Open(OpenError::Lingers { .. }))
                if started.elapsed() < LINGERS_PATIENCE =>
            {
                std::thread::sleep(Duration::from_millis(10));
            }
            outcome => return outcome,
        }
    }
}

/// Bytes of a text such as `64MiB`.
fn parse_size(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit = match &text[digits.len()..] {
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return None,
    };
    let size = digits.parse::<u64>().ok()?.checked_mul(unit)?;
    (size > 0 && size <= MEMORY_MAX).then_some(size)
}

/// The disks that a pool may stand on.
#[derive(Debug)]
enum BareDisk {
    Uring(Box<UringDisk>),
    Memory(FlatDisk),
    /// As `Memory`; guests' requests never come here.
    Null(FlatDisk),
}

/// The disk of a pool, counted where somebody wants to know.
#[derive(Debug)]
pub(crate) struct PoolDisk {
    bare: BareDisk,
    meter: Option<Box<DiskMeter>>,
}

impl From<BareDisk> for PoolDisk {
    fn from(bare: BareDisk) -> Self {
        Self { bare, meter: None }
    }
}

impl PoolDisk {
    /// Announces completions to whoever sleeps on it. `None` of a disk that never lets anybody
    /// wait.
    pub(crate) fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        match &self.bare {
            BareDisk::Uring(disk) => Some(disk.as_fd()),
            BareDisk::Memory(_) | BareDisk::Null(_) => None,
        }
    }

    /// How often the kernel was called for its requests.
    pub(crate) const fn system_calls(&self) -> u64 {
        match &self.bare {
            BareDisk::Uring(disk) => disk.system_calls(),
            BareDisk::Memory(_) | BareDisk::Null(_) => 0,
        }
    }

    /// Whether guests' requests are answered without being carried out.
    pub(crate) const fn is_null(&self) -> bool {
        matches!(self.bare, BareDisk::Null(_))
    }

    /// Has the device be given up when it answers nothing for [`PATIENCE`], or not.
    pub(crate) fn be_patient(&mut self, is_bounded: bool) {
        if let BareDisk::Uring(disk) = &mut self.bare {
            disk.set_patience(is_bounded.then_some(PATIENCE));
        }
    }

    /// Counts into `meter` from here on.
    pub(crate) fn count(&mut self, meter: DiskMeter) {
        self.meter = Some(Box::new(meter));
    }

    pub(crate) fn meter(&self) -> Option<&DiskMeter> {
        self.meter.as_deref()
    }

    /// Whether it may be sent to another thread: nothing is under way.
    pub(crate) fn is_idle(&self) -> bool {
        match &self.bare {
            BareDisk::Uring(disk) => disk.in_flight() == 0,
            BareDisk::Memory(_) | BareDisk::Null(_) => true,
        }
    }
}

impl Disk for PoolDisk {
    fn geometry(&self) -> DiskGeometry {
        self.bare.geometry()
    }

    fn enqueue(&mut self, tag: DiskTag, request: DiskRequest) -> Result<(), DiskRequest> {
        let Some(meter) = &mut self.meter else { return self.bare.enqueue(tag, request) };
        let burden = Burden::of(&request);
        self.bare.enqueue(tag, request)?;
        meter.sent(tag, burden);
        Ok(())
    }

    fn submit(&mut self) {
        if let Some(meter) = &mut self.meter {
            meter.started();
        }
        self.bare.submit();
    }

    fn complete(&mut self, into: &mut Vec<DiskCompletion>) {
        let before = into.len();
        self.bare.complete(into);
        if let Some(meter) = &mut self.meter {
            meter.ended(&into[before..]);
        }
    }

    #[inline]
    fn lends(&self) -> bool {
        self.bare.lends()
    }

    #[inline]
    fn view(&self, offset: u64, length: usize) -> Option<&[u8]> {
        self.bare.view(offset, length)
    }

    #[inline]
    fn expect(&mut self, offset: u64, length: usize) {
        self.bare.expect(offset, length);
    }

    #[inline]
    fn fetch(&mut self) {
        self.bare.fetch();
    }

    #[inline]
    fn note_view(&mut self, length: usize) {
        if let Some(meter) = &mut self.meter {
            meter.viewed(length);
        }
    }
}

impl Disk for BareDisk {
    fn geometry(&self) -> DiskGeometry {
        match self {
            Self::Uring(disk) => disk.geometry(),
            Self::Memory(disk) | Self::Null(disk) => disk.geometry(),
        }
    }

    fn enqueue(&mut self, tag: DiskTag, request: DiskRequest) -> Result<(), DiskRequest> {
        match self {
            Self::Uring(disk) => disk.enqueue(tag, request),
            Self::Memory(disk) | Self::Null(disk) => disk.enqueue(tag, request),
        }
    }

    fn submit(&mut self) {
        match self {
            Self::Uring(disk) => disk.submit(),
            Self::Memory(disk) | Self::Null(disk) => disk.submit(),
        }
    }

    fn complete(&mut self, into: &mut Vec<DiskCompletion>) {
        match self {
            Self::Uring(disk) => disk.complete(into),
            Self::Memory(disk) | Self::Null(disk) => disk.complete(into),
        }
    }

    #[inline]
    fn lends(&self) -> bool {
        matches!(self, Self::Memory(_))
    }

    #[inline]
    fn view(&self, offset: u64, length: usize) -> Option<&[u8]> {
        match self {
            Self::Uring(_) => None,
            Self::Memory(disk) | Self::Null(disk) => disk.view(offset, length),
        }
    }

    #[inline]
    fn expect(&mut self, offset: u64, length: usize) {
        if let Self::Memory(disk) = self {
            disk.expect(offset, length);
        }
    }

    #[inline]
    fn fetch(&mut self) {
        if let Self::Memory(disk) = self {
            disk.fetch();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_memory_disk_has_a_size_with_a_unit() {
        let size = |text: &str| Place::parse(Path::new(text));
        assert_eq!(size("memory:1GiB"), Ok(Place::Memory { size: 1 << 30 }));
        assert_eq!(size("memory:512KiB"), Ok(Place::Memory { size: 512 << 10 }));
        assert_eq!(size("null:1GiB"), Ok(Place::Null { size: 1 << 30 }));
        for wrong in ["null:", "memory:", "memory:1", "memory:GiB", "memory:0MiB", "memory:-1MiB"] {
            assert!(matches!(size(wrong), Err(PlaceError::Size { .. })), "{wrong}");
        }
        for wrong in ["memory:99999999999999999999GiB", "memory:18014398509481984KiB"] {
            assert!(matches!(size(wrong), Err(PlaceError::Size { .. })), "{wrong}");
        }
        assert!(matches!(size("pool.img"), Err(PlaceError::NotAbsolute { .. })));
    }
}
