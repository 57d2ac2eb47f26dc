// SPDX-License-Identifier: Apache-2.0
//! Real guests: started, lost and found again, switched off, cut off. Needs root.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use plinth_guest_image::{GuestAgent, build};
use plinth_qemu::{
    Accelerator, Boot, Identity, LaunchError, Machine, Monitor, Process, RunState, VmFolder, adopt,
    has_begun, launch,
};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const UUID: &str = "706c696e-7468-4000-8000-000000000001";

/// A VM without disks and NICs, ended with the test.
struct Vm {
    folder: VmFolder,
    machine: Machine,
    process: Process,
}

impl Vm {
    fn start(name: &str) -> Self {
        let image = build(&Path::new(env!("CARGO_TARGET_TMPDIR")).join("guest-image")).unwrap();
        let path = std::env::temp_dir().join(format!("plinth-qemu-{name}-{}", std::process::id()));
        let folder = VmFolder::new(path).unwrap();
        let machine = Machine {
            name: name.to_owned(),
            uuid: UUID.to_owned(),
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
            nics: Vec::new(),
        };
        let process = launch(&qemu(), &machine, &folder).unwrap();
        Self { folder, machine, process }
    }

    fn monitor(&self) -> Monitor {
        Monitor::connect(&self.folder.qmp(), Duration::from_secs(5)).unwrap()
    }

    fn wait_for(&self, state: RunState) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while self.monitor().status().unwrap() != state {
            assert!(Instant::now() < deadline, "the guest did not become {state:?}");
            std::thread::sleep(Duration::from_millis(50));
        }
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

fn qemu() -> PathBuf {
    "qemu-system-x86_64".into()
}

#[test]
fn a_guest_switches_itself_off_and_its_process_says_so() {
    let mut vm = Vm::start("graceful");
    let mut agent = GuestAgent::connect(&vm.folder.agent(), Duration::from_secs(120)).unwrap();
    assert_eq!(agent.check("hostname").unwrap(), "graceful");
    drop(agent);
    assert_eq!(vm.monitor().status().unwrap(), RunState::Running);
    vm.monitor().press_power().unwrap();
    vm.wait_for(RunState::Off);
    assert!(vm.process.is_alive());
    vm.monitor().quit().unwrap();
    assert!(vm.process.wait(Duration::from_secs(10)));
    assert_eq!(vm.process.ending().as_deref(), Some("ended with status 0"));
}

#[test]
fn a_process_is_found_again_by_its_monitor_and_by_nothing_else() {
    let vm = Vm::start("adopt");
    let identity = vm.process.identity();
    let found = adopt(&vm.folder, UUID, None).unwrap();
    assert_eq!(found.identity(), identity);
    // Another VM's UUID, and a record of a process that ended long ago.
    assert!(adopt(&vm.folder, "706c696e-7468-4000-8000-000000000002", None).is_none());
    let stale = Identity { start_time: identity.start_time - 1, ..identity };
    let elsewhere = VmFolder::new(std::env::temp_dir().join("plinth-nowhere")).unwrap();
    assert!(adopt(&elsewhere, UUID, Some(stale)).is_none());
    // A process that does not answer is found by its record.
    let by_record = adopt(&elsewhere, UUID, Some(identity)).unwrap();
    assert!(by_record.is_alive());
    // And without a record by its own file.
    std::fs::remove_file(vm.folder.qmp()).unwrap();
    assert!(has_begun(&vm.folder));
    assert_eq!(adopt(&vm.folder, UUID, None).unwrap().identity(), identity);
    found.kill();
    assert!(by_record.wait(Duration::from_secs(10)));
    assert!(adopt(&vm.folder, UUID, Some(identity)).is_none());
    assert!(!has_begun(&vm.folder));
}

#[test]
fn a_second_process_for_the_same_vm_ends_at_once() {
    let vm = Vm::start("twice");
    let error = launch(&qemu(), &vm.machine, &vm.folder).unwrap_err();
    assert!(matches!(error, LaunchError::Begun), "{error}");
    // One of an older release has no such lock, and QEMU's own holds.
    std::fs::remove_file(vm.folder.birth()).unwrap();
    let error = launch(&qemu(), &vm.machine, &vm.folder).unwrap_err();
    let LaunchError::Ended { ending } = &error else { panic!("{error}") };
    assert!(ending.contains("PID file"), "{ending}");
    assert_eq!(vm.monitor().status().unwrap(), RunState::Running);
}

#[test]
fn a_faulty_machine_is_refused_in_qemu_s_own_words() {
    let folder = std::env::temp_dir().join(format!("plinth-qemu-bad-{}", std::process::id()));
    let folder = VmFolder::new(folder).unwrap();
    let machine = Machine {
        name: "bad".to_owned(),
        uuid: UUID.to_owned(),
        vcpus: 1,
        memory_mib: 64,
        accelerator: Accelerator::Tcg,
        has_hugepages: false,
        boot: Boot::Kernel {
            kernel: "/nonexistent/kernel".into(),
            initrd: None,
            append: String::new(),
        },
        disks: Vec::new(),
        nics: Vec::new(),
    };
    let error = launch(&qemu(), &machine, &folder).unwrap_err();
    std::fs::remove_dir_all(folder.path()).unwrap();
    assert!(error.to_string().contains("/nonexistent/kernel"), "{error}");
}
