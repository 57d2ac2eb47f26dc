// SPDX-License-Identifier: Apache-2.0
//! NICs come to a running guest and leave it. Needs root.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use crossbeam_channel::Receiver;
use plinth_backends::net::{NetClass, NetDevice, NetOptions, OutboundBurst};
use plinth_backends::{Device, DeviceOptions, DeviceToken, QueueEvent, Shrinkable, WorkerLink};
use plinth_guest_image::{GuestAgent, build};
use plinth_ids::MacAddress;
use plinth_qemu::{
    Accelerator, AttachError, Attached, Boot, DetachError, Machine, Monitor, NIC_PORTS, Nic,
    Process, VmFolder, launch,
};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(30);

struct Vm {
    folder: VmFolder,
    process: Process,
}

impl Vm {
    fn start(name: &str, nics: Vec<Nic>) -> Self {
        let image = build(&Path::new(env!("CARGO_TARGET_TMPDIR")).join("guest-image")).unwrap();
        let path = std::env::temp_dir().join(format!("plinth-{name}-{}", std::process::id()));
        let folder = VmFolder::new(path).unwrap();
        let machine = Machine {
            name: name.to_owned(),
            uuid: "706c696e-7468-4000-8000-000000000003".to_owned(),
            vcpus: 1,
            memory_mib: 192,
            accelerator: Accelerator::Tcg,
            has_hugepages: false,
            boot: Boot::Kernel {
                kernel: image.kernel,
                initrd: Some(image.initramfs),
                append: image.kernel_parameters.to_owned(),
            },
            disks: Vec::new(),
            nics,
        };
        let process = launch(Path::new("qemu-system-x86_64"), &machine, &folder).unwrap();
        Self { folder, process }
    }

    /// A new connection each time, as an agent has that was started again.
    fn monitor(&self) -> Monitor {
        Monitor::connect(&self.folder.qmp(), Duration::from_secs(10)).unwrap()
    }

    fn agent(&self) -> GuestAgent {
        GuestAgent::connect(&self.folder.agent(), Duration::from_secs(120)).unwrap()
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        self.process.kill();
        self.process.wait(Duration::from_secs(10));
        let _ = self.process.ending();
        let _ = std::fs::remove_dir_all(self.folder.path());
    }
}

/// The switch's end of a NIC: counts what the guest sends.
struct Backend {
    nic: Nic,
    server: Option<Device>,
    is_over: Arc<AtomicBool>,
    frames: Arc<AtomicUsize>,
    worker: Option<JoinHandle<()>>,
}

impl Backend {
    fn serve(number: u8) -> Self {
        let nic = nic(number);
        let class = NetClass::new(NetOptions { mac: nic.mac.0, mtu: 1450, queue_pairs: 1 });
        let (sender, events) = crossbeam_channel::bounded(64);
        let options = DeviceOptions {
            socket: nic.socket.clone(),
            token: DeviceToken(1),
            shrinkable: Shrinkable::Refuse,
        };
        let link = WorkerLink::new(sender, Arc::new(|| {}));
        let server = Device::serve(options, Arc::new(class), link).unwrap();
        let is_over = Arc::new(AtomicBool::new(false));
        let frames = Arc::new(AtomicUsize::new(0));
        let (stop, count) = (Arc::clone(&is_over), Arc::clone(&frames));
        let worker = std::thread::spawn(move || poll(&events, &stop, &count));
        Self { nic, server: Some(server), is_over, frames, worker: Some(worker) }
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        if let Some(server) = self.server.take() {
            server.stop();
        }
        self.is_over.store(true, Ordering::Relaxed);
        let _ = self.worker.take().map(JoinHandle::join);
    }
}

fn poll(events: &Receiver<QueueEvent>, is_over: &AtomicBool, frames: &AtomicUsize) {
    let mut device = NetDevice::new(1);
    let mut burst = OutboundBurst::new();
    while !is_over.load(Ordering::Relaxed) {
        while let Ok(event) = events.try_recv() {
            device.handle(event.change);
        }
        while device.take_kick_change().is_some() {}
        device.receive(0, &mut burst);
        frames.fetch_add(burst.iter().count(), Ordering::Relaxed);
        device.release(&mut burst);
        device.flush();
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn nic(number: u8) -> Nic {
    let name = format!("plinth-hotplug-{number}-{}.sock", std::process::id());
    Nic {
        socket: std::env::temp_dir().join(name),
        mac: MacAddress([2, 0, 0, 0, 0, number]),
        mtu: 1450,
        queue_pairs: 1,
        network: Vec::new(),
    }
}

/// Whether the guest has, or has no more, a NIC of this MAC, within a time.
fn guest_sees(agent: &mut GuestAgent, mac: MacAddress, wanted: bool) -> bool {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let list = agent.check("cat /sys/class/net/*/address").unwrap();
        if list.contains(&mac.to_string()) == wanted {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

#[test]
fn a_nic_comes_to_a_running_guest_and_leaves_it() {
    let old = Backend::serve(6);
    let vm = Vm::start("hotplug", vec![old.nic.clone()]);
    let mut agent = vm.agent();
    let beginning = Attached { port: 0, mac: old.nic.mac };
    assert_eq!(vm.monitor().attached().unwrap(), [beginning]);
    let first = Backend::serve(7);
    let mac = first.nic.mac;
    let place = Attached { port: 1, mac };

    assert_eq!(vm.monitor().attach(&first.nic, Accelerator::Tcg).unwrap(), place);
    assert!(guest_sees(&mut agent, mac, true), "the guest did not take the NIC");
    agent.check("for n in /sys/class/net/*; do ip link set ${n##*/} up; done").unwrap();
    let deadline = Instant::now() + PATIENCE;
    while first.frames.load(Ordering::Relaxed) == 0 {
        assert!(Instant::now() < deadline, "the guest sent nothing through the new NIC");
        // An interface that is up sends neighbour discovery; a ping makes sure of a frame.
        let _ = agent.run("ping -c 1 -W 1 -I eth1 10.9.9.9");
    }
    assert_eq!(vm.monitor().attached().unwrap(), [beginning, place]);
    assert_eq!(vm.monitor().attach(&first.nic, Accelerator::Tcg).unwrap(), place);

    vm.monitor().detach(mac, PATIENCE).unwrap();
    assert_eq!(vm.monitor().attached().unwrap(), [beginning]);
    assert!(guest_sees(&mut agent, mac, false), "the guest kept the NIC");
    vm.monitor().detach(mac, PATIENCE).unwrap();
    // Nothing of it is left: the port takes it again.
    assert_eq!(vm.monitor().attach(&first.nic, Accelerator::Tcg).unwrap(), place);
    assert!(guest_sees(&mut agent, mac, true), "the guest did not take the NIC again");
    // One from the start goes as well.
    vm.monitor().detach(beginning.mac, PATIENCE).unwrap();
    assert_eq!(vm.monitor().attached().unwrap(), [place]);
    assert!(guest_sees(&mut agent, beginning.mac, false), "the guest kept its first NIC");
}

#[test]
fn what_cannot_be_attached_is_refused_and_leaves_nothing() {
    let vm = Vm::start("hotplug-no", Vec::new());
    drop(vm.agent());
    let absent = vm.monitor().attach(&nic(20), Accelerator::Tcg).unwrap_err();
    assert!(matches!(&absent, AttachError::Backend { path } if path == &nic(20).socket));
    assert_eq!(vm.monitor().attached().unwrap(), []);

    let backends: Vec<Backend> = (21..=21 + NIC_PORTS).map(Backend::serve).collect();
    let (last, fitting) = backends.split_last().unwrap();
    for (port, backend) in (0..).zip(fitting) {
        let attached = vm.monitor().attach(&backend.nic, Accelerator::Tcg).unwrap();
        assert_eq!(attached, Attached { port, mac: backend.nic.mac });
    }
    let full = vm.monitor().attach(&last.nic, Accelerator::Tcg).unwrap_err();
    assert!(matches!(full, AttachError::Full), "{full}");

    // A guest that has no time to answer.
    let mac = fitting[0].nic.mac;
    let held = vm.monitor().detach(mac, Duration::ZERO).unwrap_err();
    assert!(matches!(held, DetachError::Held { mac: of, .. } if of == mac), "{held}");
    vm.monitor().detach(mac, PATIENCE).unwrap();
    let attached = vm.monitor().attach(&last.nic, Accelerator::Tcg).unwrap();
    assert_eq!(attached, Attached { port: 0, mac: last.nic.mac });
}
