// SPDX-License-Identifier: Apache-2.0
#![allow(unsafe_code, reason = "a fence: opening a TAP device takes ioctls that nobody wraps")]
//! Opens a TAP device whose packets carry a virtio-net header.
//!
//! A descriptor of a TAP gives one packet a read and takes one a write. With the header in
//! front, checksum and segmentation are left to the other side, as a guest's driver leaves
//! them to its device: the bytes of a read are the bytes of a virtio-net transmit buffer.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;

/// Length of the header in front of every packet: virtio 1, with `num_buffers`.
pub const HEADER: usize = 12;

#[derive(Debug, thiserror::Error)]
pub enum TapError {
    #[error("{name} is no name for a network device: 1 to 15 bytes")]
    Name { name: String },
    #[error("/dev/net/tun cannot be opened; are we root, and does the kernel have TUN/TAP?")]
    Open { source: io::Error },
    #[error("TAP device {name}: {step} failed")]
    Setup { name: String, step: &'static str, source: io::Error },
}

/// What the reader of the TAP can complete for the kernel.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Offloads {
    pub checksum: bool,
    pub tso4: bool,
    pub tso6: bool,
}

impl Offloads {
    const fn bits(self) -> libc::c_ulong {
        let mut bits = 0;
        if self.checksum {
            bits |= libc::TUN_F_CSUM as libc::c_ulong;
            // Segmentation leaves the checksums of the segments open, so it needs the former.
            if self.tso4 {
                bits |= libc::TUN_F_TSO4 as libc::c_ulong;
            }
            if self.tso6 {
                bits |= libc::TUN_F_TSO6 as libc::c_ulong;
            }
        }
        bits
    }
}

/// Makes the device in this process's network namespace; it goes with the descriptor.
///
/// Reads and writes do not block.
///
/// # Errors
/// When the name is none, or the kernel refuses a step.
pub fn open(name: &str, offloads: Offloads) -> Result<File, TapError> {
    if name.is_empty() || name.len() >= libc::IFNAMSIZ || name.contains('\0') {
        return Err(TapError::Name { name: name.to_owned() });
    }
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/net/tun")
        .map_err(|source| TapError::Open { source })?;
    attach(&file, name).map_err(|source| setup(name, "TUNSETIFF", source))?;
    set_header(&file).map_err(|source| setup(name, "TUNSETVNETHDRSZ", source))?;
    set_offloads(&file, offloads).map_err(|source| setup(name, "TUNSETOFFLOAD", source))?;
    Ok(file)
}

fn setup(name: &str, step: &'static str, source: io::Error) -> TapError {
    TapError::Setup { name: name.to_owned(), step, source }
}

fn attach(file: &File, name: &str) -> io::Result<()> {
    let mut request = libc::ifreq {
        ifr_name: [0; libc::IFNAMSIZ],
        ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags: 0 },
    };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_le_bytes([from]);
    }
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags =
        libc::c_short::try_from(flags).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: TUNSETIFF takes a pointer to an `ifreq`, which lives until after the call; its
    // name ends with a zero because `name` is shorter than the field. The kernel writes the
    // name back into the same field and keeps no pointer.
    checked(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })
}

fn set_header(file: &File) -> io::Result<()> {
    let length = libc::c_int::try_from(HEADER).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: TUNSETVNETHDRSZ reads one int through the pointer, which lives until after the
    // call.
    checked(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const length) })
}

/// Says again what the reader can complete, as after a reconnect to another backend.
///
/// # Errors
/// When the kernel does not know a bit.
pub fn set_offloads(file: &File, offloads: Offloads) -> io::Result<()> {
    // SAFETY: TUNSETOFFLOAD takes its bits by value and touches no memory of ours.
    checked(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETOFFLOAD, offloads.bits()) })
}

fn checked(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_none_are_refused() {
        for name in ["", "sixteen-letters-", "a\0b"] {
            assert!(matches!(open(name, Offloads::default()), Err(TapError::Name { .. })));
        }
    }

    #[test]
    fn a_device_is_there_while_its_descriptor_is() {
        let name = format!("plt{}", std::process::id());
        let offloads = Offloads { checksum: true, tso4: true, tso6: true };
        let file = match open(&name, offloads) {
            Ok(file) => file,
            Err(error) => {
                println!("skipped: {error}; run as root");
                return;
            }
        };
        let path = format!("/sys/class/net/{name}");
        assert!(std::path::Path::new(&path).exists());
        drop(file);
        assert!(!std::path::Path::new(&path).exists());
    }
}
