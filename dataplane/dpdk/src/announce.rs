// SPDX-License-Identifier: Apache-2.0
//! A descriptor that says when a kernel interface has received something.
//!
//! DPDK's `net_af_packet` gives none, so a sleeping worker would have to look at the device from
//! time to time. This is a second packet socket on the same interface, which keeps one byte of a
//! few packets: enough to become readable, and nearly free while the worker is awake, because a
//! full socket drops.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Becomes readable when the interface receives. Edge-triggered watching needs it drained
/// before the device is polled for the last time before a sleep.
#[derive(Debug)]
pub struct Announcer {
    socket: OwnedFd,
}

#[derive(Debug, thiserror::Error)]
#[error("interface {interface} cannot be listened to")]
pub struct AnnouncerError {
    interface: String,
    source: io::Error,
}

/// `AF_PACKET`'s protocol number for everything, in network order as the kernel wants it.
const EVERY_PROTOCOL: u16 = 3u16.to_be();
const _: () = assert!(libc::ETH_P_ALL == 3);

/// `AF_PACKET`, in the type of an address's first field.
const FAMILY: libc::sa_family_t = 17;
const _: () = assert!(libc::AF_PACKET == 17);

fn length_of<T>() -> libc::socklen_t {
    libc::socklen_t::try_from(size_of::<T>()).expect("what is given to the kernel is short")
}

impl Announcer {
    /// # Errors
    /// When the interface is missing, or the process may not open packet sockets.
    pub fn open(interface: &str) -> Result<Self, AnnouncerError> {
        let fault = |source| AnnouncerError { interface: interface.to_owned(), source };
        let name = CString::new(interface).map_err(|error| fault(error.into()))?;
        // SAFETY: a zero-terminated text that is only read.
        let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
        if index == 0 {
            return Err(fault(io::Error::last_os_error()));
        }
        // Without a protocol it receives nothing until it is bound, so the filter comes first.
        //
        // SAFETY: takes integers, gives a new descriptor or -1.
        let raw = unsafe {
            libc::socket(
                libc::AF_PACKET,
                libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK,
                0,
            )
        };
        if raw < 0 {
            return Err(fault(io::Error::last_os_error()));
        }
        // SAFETY: opened on the line above and known to nobody else.
        let announcer = Self { socket: unsafe { OwnedFd::from_raw_fd(raw) } };
        announcer.filter().map_err(fault)?;
        announcer.bind(index.cast_signed()).map_err(fault)?;
        Ok(announcer)
    }

    /// Takes what is there, so that the next packet is an edge.
    pub fn drain(&self) {
        let mut byte = 0u8;
        loop {
            // SAFETY: the kernel writes at most one byte into a local of one.
            let read = unsafe {
                libc::recv(self.socket.as_raw_fd(), (&raw mut byte).cast(), 1, libc::MSG_DONTWAIT)
            };
            if read < 0 {
                // Empty, or the interface is gone: nothing is left either way.
                return;
            }
        }
    }

    /// Keeps one byte of what arrives and nothing of what this machine sends, and few of them.
    fn filter(&self) -> io::Result<()> {
        // Loads the packet's type, an ancillary field at a negative offset that the kernel
        // defines (linux/filter.h); returns how many bytes to keep.
        let ancillary_type = libc::SKF_AD_OFF + libc::SKF_AD_PKTTYPE;
        let outgoing = u32::from(libc::PACKET_OUTGOING);
        let mut program = [
            code(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, ancillary_type.cast_unsigned()),
            code(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, outgoing),
            code(libc::BPF_RET | libc::BPF_K, 0, 0, 0),
            code(libc::BPF_RET | libc::BPF_K, 0, 0, 1),
        ];
        let program = libc::sock_fprog { len: 4, filter: program.as_mut_ptr() };
        self.set_option(libc::SO_ATTACH_FILTER, &program)?;
        // The kernel raises this to its least, which holds a packet or two.
        self.set_option(libc::SO_RCVBUF, &0i32)
    }

    fn bind(&self, index: libc::c_int) -> io::Result<()> {
        // SAFETY: a struct of integers, for which all zeroes is a value.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = FAMILY;
        address.sll_protocol = EVERY_PROTOCOL;
        address.sll_ifindex = index;
        let length = length_of::<libc::sockaddr_ll>();
        // SAFETY: the kernel reads `length` bytes of an address of that size.
        let rc =
            unsafe { libc::bind(self.socket.as_raw_fd(), (&raw const address).cast(), length) };
        if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    fn set_option<T>(&self, option: libc::c_int, value: &T) -> io::Result<()> {
        let length = length_of::<T>();
        // SAFETY: the kernel reads `length` bytes of a value of that size, and of a program the
        // four instructions that it points to, which live in the caller's frame.
        let rc = unsafe {
            libc::setsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_SOCKET,
                option,
                std::ptr::from_ref(value).cast(),
                length,
            )
        };
        if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

fn code(operation: u32, jt: u8, jf: u8, k: u32) -> libc::sock_filter {
    let code = u16::try_from(operation).expect("an instruction's code has 16 bits");
    libc::sock_filter { code, jt, jf, k }
}

impl AsFd for Announcer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_that_is_missing_is_named() {
        let error = Announcer::open("plinth-none").unwrap_err();
        assert!(error.to_string().contains("plinth-none"));
        assert!(Announcer::open("a\0b").is_err());
    }
}
