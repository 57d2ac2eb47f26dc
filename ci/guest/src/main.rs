// SPDX-License-Identifier: Apache-2.0
//! Tests with QEMU guests: a real virtio driver on the other side of our rings.
//!
//! Guests boot Debian's kernel with a small initramfs and are spoken with over a virtio-serial
//! port, command by command. They run under emulation, which every machine has.

mod disk;
mod idle;
mod kills;
mod network;
mod node;
mod tools;
mod vm;

use plinth_stage::runner::{self, Need, Test};
use std::process::ExitCode;

const GUEST: &[Need] = &[
    Need::Root,
    Need::Program("qemu-system-x86_64", "qemu-system-x86"),
    Need::Path("/boot"),
    Need::Program("busybox", "busybox-static"),
];

const FIO: &[Need] = &[
    Need::Root,
    Need::Program("qemu-system-x86_64", "qemu-system-x86"),
    Need::Path("/boot"),
    Need::Program("busybox", "busybox-static"),
    Need::Program("fio", "fio"),
];

/// The demonstration lives at places that are the same for all, so nobody else may be there.
const WHOLE: &[Need] = &[
    Need::Root,
    Need::Program("qemu-system-x86_64", "qemu-system-x86"),
    Need::Program("busybox", "busybox-static"),
    Need::Absent("/run/plinth"),
    Need::Absent(node::RUN),
    Need::Absent(node::STATE),
];

const fn test(name: &'static str, limit_seconds: u64, run: runner::Run) -> Test {
    Test { name, needs: GUEST, limit_seconds, run }
}

const TESTS: &[Test] = &[
    test("a_file_system_survives_a_kill_of_the_store", 180, disk::killed_store),
    test("a_file_system_survives_a_kill_of_everything", 240, kills::everything),
    test("a_guest_notices_no_replacement_of_the_store", 180, kills::replaced),
    Test {
        name: "what_fio_wrote_is_read_back_through_kills_of_the_store",
        needs: FIO,
        limit_seconds: 240,
        run: kills::verified,
    },
    test("guests_ping_on_one_node_and_through_a_kill_of_the_switch", 180, network::one_node),
    test("guests_ping_across_two_nodes", 180, network::two_nodes),
    test("a_running_guest_uses_the_room_of_a_grown_disk", 120, disk::grown),
    test("an_imported_disk_boots_by_itself", 180, disk::imported),
    test("an_idle_node_leaves_its_cores_alone", 180, idle::idle_node),
    Test {
        name: "two_nodes_come_up_outlive_their_control_and_leave_nothing",
        needs: WHOLE,
        limit_seconds: 300,
        run: node::whole,
    },
];

fn main() -> ExitCode {
    runner::main(TESTS)
}
