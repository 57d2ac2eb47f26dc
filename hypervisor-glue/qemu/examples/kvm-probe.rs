// SPDX-License-Identifier: Apache-2.0
//! Says what a try of KVM on this machine comes to.

use std::path::Path;
use std::time::Duration;

fn main() {
    let probe = plinth_qemu::probe(
        Path::new("qemu-system-x86_64"),
        Path::new("/dev/kvm"),
        &std::env::temp_dir(),
        Duration::from_secs(3),
    );
    println!("{}: {}", probe.accelerator, probe.text);
}
