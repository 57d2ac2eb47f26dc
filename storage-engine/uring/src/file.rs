// SPDX-License-Identifier: Apache-2.0
//! Opening a file or block device past the page cache, for one owner.
//!
//! Two locks keep a second owner out: `flock` among processes that ask the same way, in this
//! process too, and `O_EXCL` on a block device, which also refuses a mounted one. Both end with
//! the last hold on the file, so a killed process leaves none behind for good. But the requests of
//! its rings are such holds too: a lock that ended before them would let the next owner read
//! what they have yet to write. The kernel drops these holds on one worker for the whole machine,
//! behind whatever else that has to do: deleting a large file there takes it minutes.

use crate::error::OpenError;
use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Access {
    ReadOnly,
    ReadWrite,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum FileKind {
    Regular,
    BlockDevice,
}

/// Sizes in bytes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Geometry {
    pub size: u64,
    /// Offsets and lengths of operations are multiples of this.
    pub logical_sector: u32,
    /// A write of this size, so aligned, is not read-modify-write for the device.
    pub physical_sector: u32,
    /// An aligned write of this size is never half done after a power cut, as far as the device
    /// says what it writes at once: its physical block.
    pub atomic_write: u32,
    /// Whether a discard gives space back. Of a regular file only a try can say.
    pub has_discard: bool,
}

/// A file or block device opened with `O_DIRECT` and locked.
#[derive(Debug)]
pub struct DirectFile {
    pub(crate) file: File,
    kind: FileKind,
    geometry: Geometry,
}

impl DirectFile {
    /// Opens an existing file or block device and locks it.
    pub fn open(path: &Path, access: Access) -> Result<Self, OpenError> {
        let kind = kind_of(path)?;
        let file = open_direct(path, access, kind)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(match dead_owner(&file) {
                    Some(process) => OpenError::Lingers { path: path.into(), process },
                    None => OpenError::InUse { path: path.into() },
                });
            }
            Err(TryLockError::Error(source)) => {
                return Err(OpenError::Open { path: path.into(), source });
            }
        }
        let geometry = match kind {
            FileKind::Regular => file_geometry(&file),
            FileKind::BlockDevice => device_geometry(&file),
        };
        let geometry =
            geometry.map_err(|source| OpenError::Geometry { path: path.into(), source })?;
        Ok(Self { file, kind, geometry })
    }

    pub const fn kind(&self) -> FileKind {
        self.kind
    }

    pub const fn geometry(&self) -> Geometry {
        self.geometry
    }
}

/// The process that has a file locked, if that has ended.
fn dead_owner(file: &File) -> Option<u32> {
    let metadata = file.metadata().ok()?;
    let (major, minor) = (libc::major(metadata.dev()), libc::minor(metadata.dev()));
    let locks = std::fs::read_to_string("/proc/locks").ok()?;
    let process = owner_in(&locks, &format!("{major:02x}:{minor:02x}:{}", metadata.ino()))?;
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat"));
    is_dead(stat.ok().as_deref()).then_some(process)
}

/// Who has locked a file, in the kernel's list of locks. Nobody, if that cannot be seen from here.
fn owner_in(locks: &str, file: &str) -> Option<u32> {
    locks
        .lines()
        .find_map(|line| {
            let fields: Vec<&str> = line.split_ascii_whitespace().collect();
            match fields[..] {
                [_, "FLOCK", _, _, process, at, ..] if at == file => process.parse().ok(),
                _ => None,
            }
        })
        .filter(|&process| process > 0)
}

/// Whether a process has ended, by the line that the kernel has about it, if there is one. The
/// name in it may hold anything, brackets too.
fn is_dead(stat: Option<&str>) -> bool {
    let state = stat.map(|stat| stat.rsplit(") ").next().and_then(|rest| rest.chars().next()));
    matches!(state, None | Some(Some('Z' | 'X')))
}

fn kind_of(path: &Path) -> Result<FileKind, OpenError> {
    let metadata = std::fs::metadata(path).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => OpenError::Missing { path: path.into() },
        _ => OpenError::Open { path: path.into(), source },
    })?;
    let kind = metadata.file_type();
    if kind.is_file() {
        Ok(FileKind::Regular)
    } else if kind.is_block_device() {
        Ok(FileKind::BlockDevice)
    } else {
        Err(OpenError::Kind { path: path.into() })
    }
}

fn open_direct(path: &Path, access: Access, kind: FileKind) -> Result<File, OpenError> {
    let exclusive = match kind {
        FileKind::Regular => 0,
        FileKind::BlockDevice => libc::O_EXCL,
    };
    OpenOptions::new()
        .read(true)
        .write(access == Access::ReadWrite)
        .custom_flags(libc::O_DIRECT | exclusive)
        .open(path)
        .map_err(|source| match source.raw_os_error() {
            Some(libc::EINVAL) => OpenError::DirectRefused { path: path.into() },
            Some(libc::EBUSY) => OpenError::InUse { path: path.into() },
            Some(libc::ENOENT) => OpenError::Missing { path: path.into() },
            _ => OpenError::Open { path: path.into(), source },
        })
}

/// What a file system that does not say its alignment gets: the block of nearly all of them.
const ALIGNMENT_UNSAID: u32 = 4096;

fn file_geometry(file: &File) -> io::Result<Geometry> {
    // SAFETY: `statx` is plain integers, for which all zeroes is a value.
    let mut facts: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: the descriptor is open while `file` is borrowed, the empty path is a C string, and
    // the kernel writes at most one `statx` to `facts`, which lives until the call returns.
    let rc = unsafe {
        libc::statx(
            file.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            libc::STATX_BASIC_STATS | libc::STATX_DIOALIGN,
            &raw mut facts,
        )
    };
    if rc != 0 {
        return Err(io::Error::last_os_error());
    }
    let said = facts.stx_mask & libc::STATX_DIOALIGN != 0 && facts.stx_dio_offset_align != 0;
    let logical_sector = if said { facts.stx_dio_offset_align } else { ALIGNMENT_UNSAID };
    let physical_sector = facts.stx_blksize.max(logical_sector).min(4096);
    let device = (facts.stx_dev_major, facts.stx_dev_minor);
    let atomic_write = logical_sector.max(untorn_block(device).min(facts.stx_blksize));
    Ok(Geometry {
        size: facts.stx_size,
        logical_sector,
        physical_sector,
        atomic_write,
        has_discard: true,
    })
}

/// `_IOR(0x12, 114, size_t)` of linux/fs.h, which `libc` does not have.
const BLKGETSIZE64: libc::Ioctl = 0x8008_1272;

fn device_geometry(file: &File) -> io::Result<Geometry> {
    let mut size: u64 = 0;
    let mut logical: libc::c_int = 0;
    let mut physical: libc::c_uint = 0;
    let fd = file.as_raw_fd();
    // SAFETY: the request writes one u64 to its argument, which is one and outlives the call.
    check(unsafe { libc::ioctl(fd, BLKGETSIZE64, &raw mut size) })?;
    // SAFETY: the request writes one int to its argument, which is one and outlives the call.
    check(unsafe { libc::ioctl(fd, libc::BLKSSZGET, &raw mut logical) })?;
    // SAFETY: the request writes one unsigned int to its argument, which is one and outlives the
    // call.
    check(unsafe { libc::ioctl(fd, libc::BLKPBSZGET, &raw mut physical) })?;
    let logical_sector = u32::try_from(logical).unwrap_or(ALIGNMENT_UNSAID);
    let physical_sector = physical.max(logical_sector);
    let has_discard = device_has_discard(file).unwrap_or(false);
    let rdev = file.metadata()?.rdev();
    let untorn = untorn_block((libc::major(rdev), libc::minor(rdev)));
    let atomic_write = logical_sector.max(untorn);
    Ok(Geometry { size, logical_sector, physical_sector, atomic_write, has_discard })
}

/// The device's physical block, which it writes at once, when the device (a partition of it)
/// begins with a whole one; else 0. A file system's blocks are aligned like their device.
fn untorn_block((major, minor): (u32, u32)) -> u32 {
    let folder = format!("/sys/dev/block/{major}:{minor}");
    let number = |name: &str| -> Option<u32> {
        std::fs::read_to_string(format!("{folder}/{name}")).ok()?.trim().parse().ok()
    };
    let own = number("queue/physical_block_size");
    let block = own.or_else(|| number("../queue/physical_block_size")).unwrap_or(0);
    // In sectors of 512 bytes; a whole disk has no such file and begins at 0.
    let start = number("start").unwrap_or(0);
    let is_aligned = number("alignment_offset") == Some(0);
    let is_whole = block > 0 && u64::from(start) * 512 % u64::from(block) == 0;
    if is_aligned && is_whole { block } else { 0 }
}

/// What the block layer says about discards, and about zeroing with unmapping, which is what a
/// hole in a device is. A partition has no queue of its own; its disk's is one folder up.
fn device_has_discard(file: &File) -> io::Result<bool> {
    let device = file.metadata()?.rdev();
    let folder = format!("/sys/dev/block/{}:{}", libc::major(device), libc::minor(device));
    let read = |name: &str| -> io::Result<bool> {
        let of = |queue: &str| std::fs::read_to_string(format!("{folder}/{queue}/{name}"));
        Ok(of("queue").or_else(|_| of("../queue"))?.trim() != "0")
    };
    Ok(read("discard_max_bytes")? || read("write_zeroes_max_bytes")?)
}

fn check(rc: libc::c_int) -> io::Result<()> {
    if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_owner_of_a_lock_is_found_and_only_a_dead_one_is_waited_for() {
        let locks = "1: POSIX  ADVISORY  WRITE 7 fe:00:12 0 EOF\n\
                     2: FLOCK  ADVISORY  WRITE 4601 fe:00:12 0 EOF\n\
                     2: -> FLOCK  ADVISORY  WRITE 9 fe:00:12 0 EOF\n\
                     3: FLOCK  ADVISORY  WRITE 0 fe:00:13 0 EOF\n";
        assert_eq!(owner_in(locks, "fe:00:12"), Some(4601));
        assert_eq!(owner_in(locks, "fe:00:13"), None, "of another namespace");
        assert_eq!(owner_in(locks, "fe:00:1"), None);
        assert!(is_dead(None) && is_dead(Some("4601 (stored) Z 1 1")));
        assert!(!is_dead(Some("4601 (a) Z) S 1 1")) && !is_dead(Some("4601 (stored) R 1 1")));
    }
}
