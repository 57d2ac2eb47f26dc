// SPDX-License-Identifier: Apache-2.0
//! Keeping the kernel from merging received packets.
//!
//! The kernel joins packets of one stream before packet sockets see them (GRO), tunnels' too. A
//! frame of 64 KiB fits no buffer of `net_af_packet`, which cuts it: the stream starves on
//! retransmissions. So what uses an interface through that driver switches merging off.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// `ETHTOOL_SGRO` of linux/ethtool.h.
const SET_GRO: u32 = 0x2c;
/// `ETHTOOL_GFLAGS` and `ETHTOOL_SFLAGS`, and the flag of merging done by the device.
const GET_FLAGS: u32 = 0x25;
const SET_FLAGS: u32 = 0x26;
const FLAG_LRO: u32 = 1 << 15;

/// `struct ethtool_value`.
#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

/// Switches GRO and LRO off for an interface of this network namespace.
///
/// # Errors
/// When the interface is missing or the process may not change it. A device that knows no LRO is
/// no error.
pub fn stop_merging(interface: &str) -> io::Result<()> {
    // SAFETY: takes integers, gives a new descriptor or -1.
    let raw = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    if raw < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: opened on the line above and known to nobody else.
    let socket = unsafe { OwnedFd::from_raw_fd(raw) };
    ethtool(&socket, interface, SET_GRO, 0)?;
    if let Ok(flags) = ethtool(&socket, interface, GET_FLAGS, 0)
        && flags & FLAG_LRO != 0
    {
        ethtool(&socket, interface, SET_FLAGS, flags & !FLAG_LRO)?;
    }
    Ok(())
}

fn ethtool(socket: &OwnedFd, interface: &str, command: u32, data: u32) -> io::Result<u32> {
    let mut value = Value { command, data };
    let mut request = libc::ifreq {
        ifr_name: [0; libc::IFNAMSIZ],
        ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_data: (&raw mut value).cast() },
    };
    // The last byte stays zero.
    if interface.len() >= libc::IFNAMSIZ {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (place, byte) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *place = byte.cast_signed();
    }
    // SAFETY: the kernel reads the request and reads and writes the eight bytes of the value that
    // it points to; both live in this frame and are touched by nobody else.
    let rc = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) };
    if rc == 0 { Ok(value.data) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_that_is_missing_or_misnamed_is_an_error() {
        assert_eq!(stop_merging("plinth-none").unwrap_err().raw_os_error(), Some(libc::ENODEV));
        let long = "x".repeat(libc::IFNAMSIZ);
        assert_eq!(stop_merging(&long).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}
