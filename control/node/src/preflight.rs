// SPDX-License-Identifier: Apache-2.0
//! What a node is and can do, and how to mend what it cannot.

use crate::Places;
use crate::facts::meminfo;
use plinth_api::{Check, CheckState, Facts};
use plinth_manage::Kept;
use plinth_qemu::{Accelerator, Probe, probe};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long the guest that tries KVM may take. Half a second is usual where KVM works.
const PROBE_LIMIT: Duration = Duration::from_secs(3);
/// Below this a node has no room for a guest beside its daemons.
const MEMORY_MIN: u64 = 2 << 30;
/// Below this it has room for small guests only.
const MEMORY_GOOD: u64 = 6 << 30;

/// Where /proc, /sys and /dev are found: `/`, or a copy that a test made.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Surroundings {
    pub root: PathBuf,
}

impl Default for Surroundings {
    fn default() -> Self {
        Self { root: "/".into() }
    }
}

impl Surroundings {
    pub(crate) fn path(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    /// A small file's text; empty when it cannot be read.
    pub(crate) fn text(&self, path: &str) -> String {
        std::fs::read_to_string(self.path(path)).unwrap_or_default()
    }
}

/// All but the accelerator, whose try takes longer.
pub fn facts(surroundings: &Surroundings) -> Facts {
    let cpuinfo = surroundings.text("proc/cpuinfo");
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name"));
    Facts {
        cpus: u32::try_from(cpuinfo.lines().filter(|line| line.starts_with("processor")).count())
            .unwrap_or(u32::MAX),
        cpu_model: model
            .map_or_else(String::new, |text| text.trim_matches([' ', '\t', ':']).into()),
        memory: meminfo(&surroundings.text("proc/meminfo"), "MemTotal").unwrap_or(0),
        kernel: surroundings.text("proc/sys/kernel/osrelease").trim().to_owned(),
        accelerator: String::new(),
        checks: checks(surroundings),
    }
}

/// Every line of the preflight but that of KVM's try.
pub fn checks(surroundings: &Surroundings) -> Vec<Check> {
    vec![
        root(),
        processor(&surroundings.text("proc/cpuinfo")),
        memory(meminfo(&surroundings.text("proc/meminfo"), "MemTotal")),
        hugepages(surroundings),
        io_uring(surroundings.text("proc/sys/kernel/io_uring_disabled").trim()),
        tun(&surroundings.path("dev/net/tun")),
        vfio(surroundings),
    ]
}

/// The line about a try of KVM.
pub(crate) fn kvm_check(probe: &Probe) -> Check {
    match probe.accelerator {
        Accelerator::Kvm => good("kvm", &probe.text),
        Accelerator::Tcg => warning(
            "kvm",
            &format!("{}; guests are emulated, many times slower", probe.text),
            "enable virtualisation in the firmware or, in a VM, nested virtualisation on its \
             host; then remove the file `accelerator` in --run-dir and restart plinthd",
        ),
    }
}

/// What was found out since the machine was started.
#[derive(Debug, Deserialize, Serialize)]
struct Found {
    boot: String,
    probe: Probe,
}

/// Tries KVM with a guest, or remembers the outcome since the machine's start: where KVM hangs
/// each try costs seconds.
pub fn accelerator(surroundings: &Surroundings, qemu: &Path, places: &Places) -> Probe {
    let boot = surroundings.text("proc/sys/kernel/random/boot_id").trim().to_owned();
    let kept: Kept<Found> = Kept::at(places.probe_record());
    match kept.load() {
        Ok(Some(found)) if found.boot == boot => return found.probe,
        Ok(_) => {}
        Err(err) => tracing::warn!(err = &err as &dyn std::error::Error, "KVM is tried again"),
    }
    let probe = probe(qemu, &surroundings.path("dev/kvm"), places.run(), PROBE_LIMIT);
    if let Err(err) = kept.save(&Found { boot, probe: probe.clone() }) {
        tracing::warn!(err = &err as &dyn std::error::Error, "the try of KVM is not remembered");
    }
    probe
}

fn good(name: &str, text: &str) -> Check {
    Check { name: name.into(), state: CheckState::Good, text: text.into(), remedy: None }
}

fn warning(name: &str, text: &str, remedy: &str) -> Check {
    let remedy = Some(remedy.into());
    Check { name: name.into(), state: CheckState::Warning, text: text.into(), remedy }
}

fn missing(name: &str, text: &str, remedy: &str) -> Check {
    Check { state: CheckState::Missing, ..warning(name, text, remedy) }
}

fn root() -> Check {
    if rustix::process::geteuid().is_root() {
        good("root", "runs as root")
    } else {
        missing("root", "does not run as root", "run it with sudo")
    }
}

fn processor(cpuinfo: &str) -> Check {
    let flags = cpuinfo.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
    let has = |name: &str| flags.split_whitespace().any(|flag| flag == name);
    if has("vmx") {
        good("virtualisation", "the processor has VT-x")
    } else if has("svm") {
        good("virtualisation", "the processor has AMD-V")
    } else {
        warning(
            "virtualisation",
            "the processor shows neither VT-x nor AMD-V",
            "enable it in the firmware (SVM, Intel Virtualization Technology), or nested \
             virtualisation on the host of this machine",
        )
    }
}

fn memory(total: Option<u64>) -> Check {
    let Some(total) = total else {
        return missing("memory", "/proc/meminfo does not say how much there is", "mount /proc");
    };
    let text = format!("{} MiB", total >> 20);
    if total < MEMORY_MIN {
        missing("memory", &text, "give the machine 8 GiB; 2 GiB is the least")
    } else if total < MEMORY_GOOD {
        warning("memory", &text, "give the machine 8 GiB to run more than small guests")
    } else {
        good("memory", &text)
    }
}

fn hugepages(surroundings: &Surroundings) -> Check {
    let number = |name: &str| -> u64 {
        let path = format!("sys/kernel/mm/hugepages/hugepages-2048kB/{name}");
        surroundings.text(&path).trim().parse().unwrap_or(0)
    };
    let (all, free) = (number("nr_hugepages"), number("free_hugepages"));
    if all == 0 {
        return warning(
            "hugepages",
            "no 2 MiB page is reserved; ordinary pages are used",
            "sysctl vm.nr_hugepages=1024 reserves 2 GiB; write it to /etc/sysctl.d to keep it",
        );
    }
    good("hugepages", &format!("{free} of {all} pages of 2 MiB are free"))
}

/// `setting` is kernel.io_uring_disabled; a kernel before 6.6 has none.
fn io_uring(setting: &str) -> Check {
    if setting == "2" {
        let remedy = "sysctl kernel.io_uring_disabled=0";
        return missing("io-uring", "io_uring is switched off for everybody", remedy);
    }
    match io_uring::IoUring::new(2) {
        Ok(_) => good("io-uring", "a ring could be made"),
        Err(error) => missing(
            "io-uring",
            &format!("no ring can be made: {error}"),
            "run a kernel from 5.10 on, and allow io_uring in the container's seccomp profile",
        ),
    }
}

fn tun(device: &Path) -> Check {
    match std::fs::File::options().read(true).write(true).open(device) {
        Ok(_) => good("tun", "/dev/net/tun opens"),
        Err(error) => missing(
            "tun",
            &format!("/dev/net/tun does not open: {error}"),
            "modprobe tun; in a container, pass the device in",
        ),
    }
}

fn vfio(surroundings: &Surroundings) -> Check {
    let groups = std::fs::read_dir(surroundings.path("sys/kernel/iommu_groups"));
    let groups = groups.map_or(0, Iterator::count);
    if surroundings.path("dev/vfio/vfio").exists() && groups > 0 {
        return good("vfio", &format!("{groups} IOMMU groups"));
    }
    warning(
        "vfio",
        "no VFIO with an IOMMU: no DPDK NIC of its own, no passthrough",
        "modprobe vfio-pci, and boot with intel_iommu=on or an enabled AMD IOMMU",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine of files.
    fn surroundings(name: &str, files: &[(&str, &str)]) -> Surroundings {
        let root = std::env::temp_dir().join(format!("plinth-pre-{name}-{}", std::process::id()));
        for (path, text) in files {
            let path = root.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        Surroundings { root }
    }

    fn state(checks: &[Check], name: &str) -> (CheckState, Option<String>) {
        let check = checks.iter().find(|check| check.name == name).unwrap();
        (check.state, check.remedy.clone())
    }

    #[test]
    fn a_poor_machine_hears_how_to_mend_each_lack() {
        let poor = surroundings(
            "poor",
            &[
                ("proc/cpuinfo", "processor : 0\nmodel name\t: Small\nflags : fpu\n"),
                ("proc/meminfo", "MemTotal: 1000000 kB\n"),
                ("proc/sys/kernel/io_uring_disabled", "2\n"),
            ],
        );
        let facts = facts(&poor);
        std::fs::remove_dir_all(&poor.root).unwrap();
        assert_eq!((facts.cpus, facts.cpu_model.as_str()), (1, "Small"));
        for (name, expected, word) in [
            ("virtualisation", CheckState::Warning, "firmware"),
            ("memory", CheckState::Missing, "8 GiB"),
            ("hugepages", CheckState::Warning, "vm.nr_hugepages"),
            ("io-uring", CheckState::Missing, "kernel.io_uring_disabled=0"),
            ("tun", CheckState::Missing, "modprobe tun"),
            ("vfio", CheckState::Warning, "vfio-pci"),
        ] {
            let (found, remedy) = state(&facts.checks, name);
            assert_eq!(found, expected, "{name}");
            assert!(remedy.is_some_and(|text| text.contains(word)), "{name}");
        }
    }

    #[test]
    fn a_good_machine_has_nothing_to_mend() {
        let rich = surroundings(
            "rich",
            &[
                ("proc/cpuinfo", "processor : 0\nprocessor : 1\nflags : fpu svm\n"),
                ("proc/meminfo", "MemTotal: 16000000 kB\n"),
                ("sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "8\n"),
                ("sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", "5\n"),
                ("dev/net/tun", ""),
                ("dev/vfio/vfio", ""),
                ("sys/kernel/iommu_groups/0/type", ""),
            ],
        );
        let checks = checks(&rich);
        std::fs::remove_dir_all(&rich.root).unwrap();
        for name in ["virtualisation", "memory", "hugepages", "tun", "vfio"] {
            assert_eq!(state(&checks, name), (CheckState::Good, None), "{name}");
        }
        assert!(checks.iter().any(|check| check.text == "5 of 8 pages of 2 MiB are free"));
    }

    #[test]
    fn the_outcome_of_a_try_is_remembered_until_the_machine_starts_again() {
        let machine = surroundings("memory", &[("proc/sys/kernel/random/boot_id", "one\n")]);
        let places = Places::new(&machine.root, &machine.root).unwrap();
        let qemu = Path::new("/nonexistent/qemu");
        let first = accelerator(&machine, qemu, &places);
        assert!(first.text.contains("is not there"), "{}", first.text);
        // With a device the text would differ, if KVM were tried.
        std::fs::create_dir_all(machine.path("dev")).unwrap();
        std::fs::write(machine.path("dev/kvm"), "").unwrap();
        assert_eq!(accelerator(&machine, qemu, &places), first);
        std::fs::write(machine.path("proc/sys/kernel/random/boot_id"), "two\n").unwrap();
        let again = accelerator(&machine, qemu, &places);
        std::fs::remove_dir_all(&machine.root).unwrap();
        assert!(again.text.contains("cannot be tried"), "{}", again.text);
    }
}
