// SPDX-License-Identifier: Apache-2.0
//! One file of a guest's memory, mapped.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::ptr::NonNull;

/// What to do with a file that its owner could shrink under our mapping.
///
/// A read behind the end of a shrunk file is a bus error, which would end the whole daemon.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Shrinkable {
    /// Take only files that are sealed against shrinking, or that we can seal.
    #[default]
    Refuse,
    /// Take any file. For peers that are trusted like ourselves, such as a generator of load.
    Accept,
}

/// Why a file was not mapped.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    #[error("a region of no bytes")]
    Empty,
    #[error("{length} bytes at {offset} of the file are past any end")]
    TooLarge { offset: u64, length: u64 },
    #[error("the file's size cannot be read")]
    Stat { source: io::Error },
    #[error("the file has {size} bytes, the region needs {length} at {offset}")]
    FileTooShort { size: u64, offset: u64, length: u64 },
    #[error(
        "the file can be shrunk by its owner; use memory-backend-memfd with seal=on, \
         or have the backend accept shrinkable memory"
    )]
    NotSealed { source: io::Error },
    #[error("{length} bytes at {offset} of the file cannot be mapped")]
    Map { offset: u64, length: u64, source: io::Error },
}

/// Unmapped on drop.
#[derive(Debug)]
pub(crate) struct Mapping {
    /// What `mmap` gave: begins at a page of the file.
    start: NonNull<u8>,
    mapped: usize,
    /// Where the wanted part begins, and how long it is.
    skip: usize,
    length: usize,
}

// SAFETY: a mapping is not tied to a thread, and the only ways to it are copies and atomics,
// which make no reference that others could invalidate.
unsafe impl Send for Mapping {}
// SAFETY: as above; two threads that write the same byte get one of the two.
unsafe impl Sync for Mapping {}

impl Mapping {
    pub(crate) fn new(
        file: &File,
        offset: u64,
        length: u64,
        shrinkable: Shrinkable,
    ) -> Result<Self, MapError> {
        if length == 0 {
            return Err(MapError::Empty);
        }
        let end = offset.checked_add(length).ok_or(MapError::TooLarge { offset, length })?;
        let metadata = file.metadata().map_err(|source| MapError::Stat { source })?;
        // Seal first and measure then, so that nobody shrinks the file in between.
        match (seal_against_shrinking(file), shrinkable) {
            (Ok(()), _) | (Err(_), Shrinkable::Accept) => {}
            (Err(source), Shrinkable::Refuse) => return Err(MapError::NotSealed { source }),
        }
        let size = file.metadata().map_err(|source| MapError::Stat { source })?.len();
        if size < end {
            return Err(MapError::FileTooShort { size, offset, length });
        }
        // The preferred block of a hugetlbfs file is its page; of others it is 4 KiB or more,
        // and aligning to more than a page does no harm.
        let page = metadata.blksize().max(4096);
        let skip = offset % page;
        let too_large = MapError::TooLarge { offset, length };
        let Some(mapped) = (skip + length).checked_next_multiple_of(page) else {
            return Err(too_large);
        };
        let (Ok(mapped), Ok(skip_bytes), Ok(wanted), Ok(from)) = (
            usize::try_from(mapped),
            usize::try_from(skip),
            usize::try_from(length),
            libc::off_t::try_from(offset - skip),
        ) else {
            return Err(too_large);
        };
        let start = map_shared(file, from, mapped).map_err(|source| MapError::Map {
            offset,
            length,
            source,
        })?;
        Ok(Self { start, mapped, skip: skip_bytes, length: wanted })
    }

    /// The first byte of the wanted part. Valid for `length()` bytes while `self` lives.
    #[inline]
    pub(crate) fn base(&self) -> *mut u8 {
        // `wrapping_add` needs no promise; `skip` is below `mapped` by construction.
        self.start.as_ptr().wrapping_add(self.skip)
    }

    #[inline]
    pub(crate) const fn length(&self) -> usize {
        self.length
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: `start` and `mapped` are what `mmap` gave us, nobody else unmaps it, and every
        // pointer that was made from it is borrowed from `self`.
        let rc = unsafe { libc::munmap(self.start.as_ptr().cast(), self.mapped) };
        assert_eq!(rc, 0, "munmap of a mapping we own: {}", io::Error::last_os_error());
    }
}

fn map_shared(file: &File, from: libc::off_t, length: usize) -> io::Result<NonNull<u8>> {
    let (protection, flags) =
        (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_NORESERVE);
    // SAFETY: with a null hint and without MAP_FIXED the kernel picks a range that nothing in
    // this process uses. The descriptor is open while `file` is borrowed, and the mapping
    // outlives it.
    let start = unsafe {
        libc::mmap(std::ptr::null_mut(), length, protection, flags, file.as_raw_fd(), from)
    };
    match NonNull::new(start.cast::<u8>()) {
        Some(start) if start.as_ptr().cast() != libc::MAP_FAILED => Ok(start),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Makes sure that the file never gets shorter.
fn seal_against_shrinking(file: &File) -> io::Result<()> {
    // SAFETY: the descriptor is open, and the command takes no argument.
    let seals = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GET_SEALS) };
    if seals >= 0 && seals & libc::F_SEAL_SHRINK != 0 {
        return Ok(());
    }
    // SAFETY: the descriptor is open, and the command takes an integer.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, libc::F_SEAL_SHRINK) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memfd::sealed_memfd;
    use std::ffi::CStr;
    use std::os::fd::FromRawFd;

    /// A memfd that is not sealed, and cannot be unless `sealable`.
    fn loose_memfd(length: u64, flags: libc::c_uint) -> File {
        let name: &CStr = c"plinth-test";
        // SAFETY: `name` is a string with its zero.
        let fd = unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC | flags) };
        assert!(fd >= 0, "{}", io::Error::last_os_error());
        // SAFETY: a descriptor of our own.
        let file = unsafe { File::from_raw_fd(fd) };
        file.set_len(length).unwrap();
        file
    }

    #[test]
    fn a_file_that_can_be_sealed_is_sealed_and_cannot_shrink_any_more() {
        let file = loose_memfd(8192, libc::MFD_ALLOW_SEALING);
        let _mapping = Mapping::new(&file, 0, 8192, Shrinkable::Refuse).unwrap();
        assert!(file.set_len(4096).is_err());
        assert!(file.set_len(12288).is_ok(), "growing harms nobody");
    }

    #[test]
    fn a_file_that_cannot_be_sealed_is_refused_unless_asked_for() {
        let file = loose_memfd(8192, 0);
        let refusal = Mapping::new(&file, 0, 8192, Shrinkable::Refuse).unwrap_err();
        assert!(matches!(refusal, MapError::NotSealed { .. }), "{refusal}");
        assert!(refusal.to_string().contains("memory-backend-memfd"));
        assert!(Mapping::new(&file, 0, 8192, Shrinkable::Accept).is_ok());
    }

    #[test]
    fn a_region_past_the_files_end_is_refused() {
        let file = sealed_memfd(c"plinth-test", 8192).unwrap();
        let map = |offset, length| Mapping::new(&file, offset, length, Shrinkable::Refuse);
        assert!(map(4096, 4096).is_ok());
        assert!(matches!(map(4096, 4097), Err(MapError::FileTooShort { size: 8192, .. })));
        assert!(matches!(map(0, 0), Err(MapError::Empty)));
        assert!(matches!(map(u64::MAX, 2), Err(MapError::TooLarge { .. })));
    }

    #[test]
    fn a_directory_is_no_memory() {
        let directory = File::open("/").unwrap();
        let error = Mapping::new(&directory, 0, 1, Shrinkable::Accept).unwrap_err();
        assert!(matches!(error, MapError::Map { .. } | MapError::FileTooShort { .. }), "{error}");
    }

    #[test]
    fn an_offset_inside_a_page_is_where_the_mapping_begins() {
        use std::os::unix::fs::FileExt;
        let file = sealed_memfd(c"plinth-test", 8192).unwrap();
        file.write_all_at(b"here", 5000).unwrap();
        let mapping = Mapping::new(&file, 5000, 4, Shrinkable::Refuse).unwrap();
        let mut bytes = [0; 4];
        // SAFETY: the mapping has four bytes, and nobody else has this file.
        unsafe { crate::copy::copy(bytes.as_mut_ptr(), mapping.base(), 4) };
        assert_eq!(&bytes, b"here");
    }
}
