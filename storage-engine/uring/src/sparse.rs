// SPDX-License-Identifier: Apache-2.0
//! Where a sparse file has data.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;

/// The first run of data at or after `from`, `None` when there is none up to the end of the file.
/// Moves the file's position.
///
/// What lies between two runs reads as zeros. A file system that keeps no holes gives the rest of
/// the file as one run.
pub fn next_data(file: &File, from: u64) -> io::Result<Option<Range<u64>>> {
    let Some(start) = seek(file, from, libc::SEEK_DATA)? else { return Ok(None) };
    // A hole is always found: there is one at the end of every file.
    let end = seek(file, start, libc::SEEK_HOLE)?.unwrap_or(start);
    Ok((end > start).then_some(start..end))
}

/// `None` where there is nothing of the kind before the end.
fn seek(file: &File, from: u64, whence: libc::c_int) -> io::Result<Option<u64>> {
    let from = libc::off_t::try_from(from).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: takes and gives integers only; the descriptor is open while `file` is borrowed.
    let found = unsafe { libc::lseek(file.as_raw_fd(), from, whence) };
    match u64::try_from(found) {
        Ok(found) => Ok(Some(found)),
        Err(_) => match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::ENXIO) => Ok(None),
            error => Err(error),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn holes_are_stepped_over() {
        let path = std::env::temp_dir().join(format!("plinth-sparse-{}", std::process::id()));
        let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        file.set_len(64 << 20).unwrap();
        file.write_all_at(&[1; 4096], 8 << 20).unwrap();
        file.write_all_at(&[1; 4096], 32 << 20).unwrap();
        let first = next_data(&file, 0).unwrap().unwrap();
        assert_eq!(first, 8 << 20..(8 << 20) + 4096);
        let second = next_data(&file, first.end).unwrap().unwrap();
        assert_eq!(second.start, 32 << 20);
        assert_eq!(next_data(&file, second.end).unwrap(), None);
        assert_eq!(next_data(&file, 1 << 40).unwrap(), None);
    }
}
