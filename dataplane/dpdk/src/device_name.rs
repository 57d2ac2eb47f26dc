// SPDX-License-Identifier: Apache-2.0
//! How a device is called: a PCI address or a virtual device, with arguments.

use std::ffi::CString;
use std::fmt;
use std::str::FromStr;

/// `0000:03:00.0` or `net_af_packet0`, and after a comma the driver's arguments.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct DeviceName {
    bus: Bus,
    name: CString,
    arguments: CString,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Bus {
    Pci,
    Vdev,
}

#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum DeviceNameError {
    #[error("a device name is empty: write a PCI address or a virtual device")]
    Empty,
    #[error("device {text:?} has a zero byte or a character that is not printable ASCII")]
    Character { text: String },
    #[error(
        "{name:?} is no device name: write a PCI address, as in 0000:03:00.0, or a virtual \
         device, as in net_af_packet0,iface=eth1"
    )]
    Shape { name: String },
    #[error("device name {name:?} is longer than {NAME_LENGTH_MAX} characters")]
    TooLong { name: String },
}

/// The ethdev library keeps names of 64 bytes with their zero.
const NAME_LENGTH_MAX: usize = plinth_dpdk_sys::RTE_ETH_NAME_MAX_LEN as usize - 1;

impl DeviceName {
    pub const fn bus(&self) -> Bus {
        self.bus
    }

    pub(crate) const fn name(&self) -> &CString {
        &self.name
    }

    pub(crate) const fn arguments(&self) -> &CString {
        &self.arguments
    }

    pub(crate) const fn bus_name(&self) -> &'static std::ffi::CStr {
        match self.bus {
            Bus::Pci => c"pci",
            Bus::Vdev => c"vdev",
        }
    }

    /// Whether DPDK takes the two for one device: it has one of each name.
    pub fn is_same_device(&self, other: &Self) -> bool {
        self.bus == other.bus && self.name == other.name
    }

    /// The value of one argument, as in `iface` of `net_af_packet0,iface=eth1`.
    pub fn argument(&self, key: &str) -> Option<&str> {
        let arguments = self.arguments.to_str().expect("the text was checked to be ASCII");
        arguments.split(',').find_map(|pair| pair.strip_prefix(key)?.strip_prefix('='))
    }

    /// The same device with one more argument, unless it has that one already.
    #[must_use]
    pub fn with_argument(&self, key: &str, value: u32) -> Self {
        if self.argument(key).is_some() {
            return self.clone();
        }
        let before = self.arguments.to_str().expect("the text was checked to be ASCII");
        let comma = if before.is_empty() { "" } else { "," };
        let arguments = CString::new(format!("{before}{comma}{key}={value}"))
            .expect("neither the arguments nor a key have a zero byte");
        Self { arguments, ..self.clone() }
    }

    /// The driver of a virtual device: its name without the number, as in `net_af_packet`.
    pub fn driver(&self) -> Option<&str> {
        let name = self.name.to_str().expect("the text was checked to be ASCII");
        match self.bus {
            Bus::Pci => None,
            Bus::Vdev => Some(name.trim_end_matches(|digit: char| digit.is_ascii_digit())),
        }
    }
}

impl FromStr for DeviceName {
    type Err = DeviceNameError;

    fn from_str(text: &str) -> Result<Self, DeviceNameError> {
        if text.is_empty() {
            return Err(DeviceNameError::Empty);
        }
        if text.bytes().any(|byte| !(b' '..=b'~').contains(&byte)) {
            return Err(DeviceNameError::Character { text: text.to_owned() });
        }
        let (name, arguments) = text.split_once(',').unwrap_or((text, ""));
        let (bus, name) = match canonical_pci(name) {
            Some(address) => (Bus::Pci, address),
            None if is_vdev(name) => (Bus::Vdev, name.to_owned()),
            None => return Err(DeviceNameError::Shape { name: name.to_owned() }),
        };
        if name.len() > NAME_LENGTH_MAX {
            return Err(DeviceNameError::TooLong { name });
        }
        let c_string = |text: &str| CString::new(text).expect("checked to have no zero byte");
        Ok(Self { bus, name: c_string(&name), arguments: c_string(arguments) })
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name.to_string_lossy())?;
        if !self.arguments.is_empty() {
            write!(f, ",{}", self.arguments.to_string_lossy())?;
        }
        Ok(())
    }
}

/// `net_` and the rest of an identifier.
fn is_vdev(name: &str) -> bool {
    let rest = name.strip_prefix("net_").unwrap_or_default();
    !rest.is_empty() && rest.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'_' || c == b'-')
}

/// Domain, bus, device and function in the widths that DPDK names its devices with. The domain
/// may be left out, as lspci does.
fn canonical_pci(text: &str) -> Option<String> {
    let hex = |digits: &str, width: usize| {
        let all = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
        (all && digits.len() == width).then_some(())
    };
    let (front, function) = text.split_once('.')?;
    let mut parts = front.rsplitn(3, ':');
    let (device, bus) = (parts.next()?, parts.next()?);
    let domain = parts.next().unwrap_or("0000");
    hex(domain, 4)?;
    hex(bus, 2)?;
    hex(device, 2)?;
    matches!(function, "0" | "1" | "2" | "3" | "4" | "5" | "6" | "7").then_some(())?;
    Some(format!("{domain}:{bus}:{device}.{function}").to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pci_addresses_are_made_canonical() {
        for text in ["0000:3B:00.1", "3b:00.1", "0000:3b:00.1,mprq_en=1"] {
            let device: DeviceName = text.parse().unwrap();
            assert_eq!((device.bus(), device.driver()), (Bus::Pci, None));
            assert_eq!(device.name().to_str(), Ok("0000:3b:00.1"), "{text}");
        }
    }

    #[test]
    fn virtual_devices_keep_their_arguments() {
        let device: DeviceName = "net_af_packet0,iface=eth1,framesz=4096".parse().unwrap();
        assert_eq!((device.bus(), device.driver()), (Bus::Vdev, Some("net_af_packet")));
        assert_eq!(device.argument("iface"), Some("eth1"));
        assert_eq!((device.argument("if"), device.argument("blocksz")), (None, None));
        assert_eq!(device.to_string(), "net_af_packet0,iface=eth1,framesz=4096");
        let larger = device.with_argument("framesz", 1).with_argument("blocksz", 65_536);
        assert_eq!(larger.to_string(), "net_af_packet0,iface=eth1,framesz=4096,blocksz=65536");
        assert_eq!("net_null0".parse::<DeviceName>().unwrap().to_string(), "net_null0");
    }

    #[test]
    fn each_fault_has_its_own_error() {
        let fault = |text: &str| text.parse::<DeviceName>().unwrap_err();
        assert_eq!(fault(""), DeviceNameError::Empty);
        assert!(matches!(fault("net_tap0\0"), DeviceNameError::Character { .. }));
        for text in ["eth0", "net_", "3b:00.8", "3b:00", "00003b:00.0", ",iface=x", "net_a b"] {
            assert!(matches!(fault(text), DeviceNameError::Shape { .. }), "{text}");
        }
        let long = format!("net_{}", "x".repeat(60));
        assert!(matches!(fault(&long), DeviceNameError::TooLong { .. }));
    }
}
