// SPDX-License-Identifier: Apache-2.0
//! NICs that are attached to a running VM and detached from it (ADR-131).
//!
//! Every NIC is in a port of its own, whether it was there at the start or came later.
//! QEMU itself is the record of what is attached: who comes later asks it.

use crate::command::names::{bus, chardev, device, netdev};
use crate::command::nic_properties;
use crate::{Accelerator, Monitor, MonitorError, NIC_PORTS, Nic};
use plinth_ids::MacAddress;
use qapi::qmp;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long the switch may take to answer on a NIC's socket.
const BACKEND_LIMIT: Duration = Duration::from_secs(2);
/// Between two questions to QEMU.
const PAUSE: Duration = Duration::from_millis(50);
/// Where QEMU lists the devices that have a name.
const PERIPHERAL: &str = "/machine/peripheral";

/// A NIC in its port.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Attached {
    /// Below [`NIC_PORTS`].
    pub port: u8,
    pub mac: MacAddress,
}

#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    #[error("no port for a NIC is free: a VM has {NIC_PORTS} at most")]
    Full,
    #[error(transparent)]
    Old(#[from] OldProcess),
    #[error("the switch does not answer at {}", path.display())]
    Backend { path: PathBuf },
    #[error(transparent)]
    Monitor(#[from] MonitorError),
}

/// A process that an older release started, whose NICs are not in ports.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error(
    "an older release started its process; its NICs come and go when the VM is stopped and \
         started"
)]
pub struct OldProcess;

#[derive(Debug, thiserror::Error)]
pub enum DetachError {
    #[error(transparent)]
    Old(#[from] OldProcess),
    /// It may still let go of it; ask again later.
    #[error("the guest did not let go of NIC {mac} within {} s", limit.as_secs())]
    Held { mac: MacAddress, limit: Duration },
    #[error(transparent)]
    Monitor(#[from] MonitorError),
}

impl Monitor {
    /// The NICs, by port.
    ///
    /// # Errors
    /// When QEMU does not answer.
    pub fn attached(&mut self) -> Result<Vec<Attached>, MonitorError> {
        let names = self.peripherals()?;
        let mut attached = Vec::new();
        for port in (0..NIC_PORTS).filter(|port| names.contains(&device(*port))) {
            let path = format!("{PERIPHERAL}/{}", device(port));
            let question = qmp::qom_get { path, property: "mac".to_owned() };
            let answer = match self.execute("qom-get", &question) {
                // It went between the two questions.
                Err(MonitorError::Refused { .. }) => continue,
                answer => answer?,
            };
            if let Some(mac) = answer.as_str().and_then(|text| text.parse().ok()) {
                attached.push(Attached { port, mac });
            }
        }
        Ok(attached)
    }

    /// Attaches a NIC, whose socket the switch serves. One that is attached stays as it is.
    ///
    /// # Errors
    /// After every error nothing of the NIC is left.
    pub fn attach(&mut self, nic: &Nic, accelerator: Accelerator) -> Result<Attached, AttachError> {
        let there = self.attached()?;
        if let Some(attached) = there.into_iter().find(|attached| attached.mac == nic.mac) {
            return Ok(attached);
        }
        let names = self.peripherals()?;
        if !names.contains(&bus(0)) {
            return Err(OldProcess.into());
        }
        let port = (0..NIC_PORTS)
            .find(|port| names.contains(&bus(*port)) && !names.contains(&device(*port)))
            .ok_or(AttachError::Full)?;
        // Whoever was here before may have ended half-way.
        self.clear(port)?;
        let done = self.connect_backend(port, &nic.socket).and_then(|()| {
            self.add_device(port, nic, accelerator)?;
            Ok(Attached { port, mac: nic.mac })
        });
        if done.is_err() {
            self.clear(port)?;
        }
        done
    }

    /// Detaches a NIC; `limit` is what the guest may take.
    /// One that is not attached is no error.
    ///
    /// # Errors
    /// When the guest does not let go of it in time, or QEMU does not answer.
    pub fn detach(&mut self, mac: MacAddress, limit: Duration) -> Result<(), DetachError> {
        let there = self.attached()?;
        let Some(Attached { port, .. }) = there.into_iter().find(|there| there.mac == mac) else {
            let is_old = !self.peripherals()?.contains(&bus(0));
            return if is_old { Err(OldProcess.into()) } else { Ok(()) };
        };
        let ask = qmp::device_del { id: device(port) };
        // Refused when it was asked before and the guest has not answered yet.
        allow_refusal(self.execute("device_del", &ask))?;
        // The list is asked instead of waiting for DEVICE_DELETED: an event is lost with the
        // connection, the list is not.
        let deadline = Instant::now() + limit;
        while self.peripherals()?.contains(&device(port)) {
            if Instant::now() >= deadline {
                return Err(DetachError::Held { mac, limit });
            }
            std::thread::sleep(PAUSE);
        }
        Ok(self.clear(port)?)
    }

    fn peripherals(&mut self) -> Result<Vec<String>, MonitorError> {
        let list = self.execute("qom-list", &qmp::qom_list { path: PERIPHERAL.to_owned() })?;
        Ok(list.into_iter().map(|property| property.name).collect())
    }

    /// QEMU waits for a backend inside `netdev_add`, and the guest with it: so the connection
    /// stands before.
    fn connect_backend(&mut self, port: u8, socket: &Path) -> Result<(), AttachError> {
        let addr = qmp::UnixSocketAddress {
            abstract_: None,
            tight: None,
            path: socket.to_string_lossy().into_owned(),
        };
        let options = qmp::ChardevSocket {
            base: qmp::ChardevCommon { logappend: None, logfile: None },
            nodelay: None,
            reconnect: Some(1),
            server: Some(false),
            telnet: None,
            tls_authz: None,
            tls_creds: None,
            tn3270: None,
            wait: None,
            websocket: None,
            addr: qmp::SocketAddressLegacy::unix(addr.into()),
        };
        let backend = qmp::ChardevBackend::socket(options.into());
        self.execute("chardev-add", &qmp::chardev_add { backend, id: chardev(port) })?;
        let deadline = Instant::now() + BACKEND_LIMIT;
        loop {
            let list = self.execute("query-chardev", &qmp::query_chardev {})?;
            let own = list.iter().find(|entry| entry.label == chardev(port));
            if own.is_some_and(|entry| !entry.filename.starts_with("disconnected")) {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(AttachError::Backend { path: socket.into() });
            }
            std::thread::sleep(PAUSE);
        }
    }

    fn add_device(
        &mut self,
        port: u8,
        nic: &Nic,
        accelerator: Accelerator,
    ) -> Result<(), MonitorError> {
        let vhost_user = qmp::NetdevVhostUserOptions {
            chardev: chardev(port),
            queues: Some(nic.queue_pairs.into()),
            vhostforce: None,
        };
        let backend = qmp::Netdev::vhost_user { id: netdev(port), vhost_user };
        self.execute("netdev_add", &qmp::netdev_add(backend))?;
        let arguments = nic_properties(accelerator, nic)
            .into_iter()
            .chain([("netdev", netdev(port).into())])
            .map(|(name, value)| (name.to_owned(), value))
            .collect();
        let add = qmp::device_add {
            bus: Some(bus(port)),
            id: Some(device(port)),
            driver: "virtio-net-pci".to_owned(),
            arguments,
        };
        self.execute("device_add", &add).map(drop)
    }

    /// Takes away what a port without a device has behind it.
    fn clear(&mut self, port: u8) -> Result<(), MonitorError> {
        allow_refusal(self.execute("netdev_del", &qmp::netdev_del { id: netdev(port) }))?;
        allow_refusal(self.execute("chardev-remove", &qmp::chardev_remove { id: chardev(port) }))
    }
}

fn allow_refusal<T>(answer: Result<T, MonitorError>) -> Result<(), MonitorError> {
    match answer {
        Ok(_) | Err(MonitorError::Refused { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}
