// SPDX-License-Identifier: Apache-2.0
//! Both ways to boot, under plain QEMU with emulation. Needs root and qemu-system-x86.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use plinth_guest_image::{GuestAgent, GuestImage, build};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A QEMU that ends with the test.
struct Guest {
    child: Child,
    folder: PathBuf,
    monitor: Option<std::process::ChildStdin>,
}

impl Guest {
    fn start(name: &str, extra: &[&str]) -> Self {
        let folder =
            std::env::temp_dir().join(format!("plinth-boot-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let agent = folder.join("agent.sock");
        let mut child = Command::new("qemu-system-x86_64")
            .args(["-nodefaults", "-nographic", "-no-user-config", "-machine", "q35,accel=tcg"])
            .args(["-cpu", "max", "-m", "256", "-monitor", "stdio"])
            .args(["-serial", &format!("file:{}", folder.join("console").display())])
            .args(["-chardev", &format!("socket,id=a,path={},server=on,wait=off", agent.display())])
            .args(["-device", "virtio-serial-pci", "-device"])
            .arg("virtserialport,chardev=a,name=plinth.agent")
            .args(["-netdev", "user,id=n", "-device"])
            .arg("virtio-net-pci,netdev=n,mac=02:00:00:00:00:07")
            .args(["-fw_cfg", "name=opt/plinth/hostname,string=made-by-test", "-fw_cfg"])
            .arg("name=opt/plinth/network,string=02:00:00:00:00:07 10.0.2.15/24 10.0.2.2 1400")
            .args(extra)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let monitor = child.stdin.take();
        Self { child, folder, monitor }
    }

    fn agent(&self) -> GuestAgent {
        GuestAgent::connect(&self.folder.join("agent.sock"), Duration::from_secs(120))
            .unwrap_or_else(|error| panic!("{error}; console:\n{}", self.console()))
    }

    fn console(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(self.folder.join("console")).unwrap_or_default())
            .into_owned()
    }

    /// Presses the power button and waits for the end.
    fn power_off(mut self) {
        use std::io::Write;
        self.monitor.as_mut().unwrap().write_all(b"system_powerdown\n").unwrap();
        let deadline = Instant::now() + Duration::from_secs(30);
        while self.child.try_wait().unwrap().is_none() {
            assert!(Instant::now() < deadline, "the power button was not heard");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn image() -> GuestImage {
    build(&Path::new(env!("CARGO_TARGET_TMPDIR")).join("guest-image")).unwrap()
}

/// What every guest must be able to do.
fn examine(agent: &mut GuestAgent) {
    assert_eq!(agent.check("hostname").unwrap(), "made-by-test");
    assert_eq!(agent.check("cat /sys/class/net/eth0/mtu").unwrap(), "1400");
    agent.check("ping -c 1 -W 5 10.0.2.2").unwrap();
    let output = agent.run("echo out; echo err >&2; exit 7").unwrap();
    assert_eq!(
        (output.status, output.stdout, output.stderr),
        (7, b"out\n".to_vec(), b"err\n".to_vec())
    );
    // Every byte value survives the way, and so does a command of several lines.
    let output = agent
        .run("i=0\nwhile [ $i -lt 256 ]; do printf \"\\\\$(printf %o $i)\"; i=$((i+1)); done")
        .unwrap();
    assert_eq!(output.stdout, (0..=255).collect::<Vec<u8>>());
    agent.set_limit(Duration::from_secs(1));
    assert_eq!(agent.run("sleep 1000").unwrap().status, 137);
    agent.set_limit(Duration::from_secs(60));
    agent
        .check("dd if=/dev/zero of=/run/disk bs=1M count=16 2>&1; mkfs.ext4 -q -F /run/disk; fsck.ext4 -fn /run/disk")
        .unwrap();
    agent.check("iperf3 --version").unwrap();
}

#[test]
fn a_kernel_and_initramfs_boot_directly() {
    let image = image();
    let guest = Guest::start(
        "direct",
        &[
            "-kernel",
            image.kernel.to_str().unwrap(),
            "-initrd",
            image.initramfs.to_str().unwrap(),
            "-append",
            image.kernel_parameters,
        ],
    );
    let mut agent = guest.agent();
    examine(&mut agent);
    // A second client finds the agent in step, also when the first left in the middle.
    drop(agent);
    examine(&mut guest.agent());
    guest.power_off();
}

#[test]
fn a_disk_boots_by_itself_and_keeps_what_is_written() {
    let image = image();
    let copy = std::env::temp_dir().join(format!("plinth-boot-{}.raw", std::process::id()));
    std::fs::copy(&image.disk, &copy).unwrap();
    let drive = format!("file={},format=raw,if=virtio", copy.display());
    let guest = Guest::start("disk", &["-drive", &drive]);
    let mut agent = guest.agent();
    examine(&mut agent);
    assert!(agent.check("mount").unwrap().contains(" on / type ext4 (rw"));
    agent.check("echo kept >/root/note; sync").unwrap();
    drop(agent);
    guest.power_off();

    let guest = Guest::start("again", &["-drive", &drive]);
    assert_eq!(guest.agent().check("cat /root/note").unwrap(), "kept");
    guest.power_off();
    std::fs::remove_file(copy).unwrap();
}

#[test]
fn a_second_build_finds_the_first() {
    let first = image();
    let written = std::fs::metadata(&first.disk).unwrap().modified().unwrap();
    let second = image();
    assert_eq!(first, second);
    assert_eq!(std::fs::metadata(&second.disk).unwrap().modified().unwrap(), written);
}
