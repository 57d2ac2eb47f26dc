// SPDX-License-Identifier: Apache-2.0
//! The archive format that the kernel unpacks as its initramfs: cpio, "newc"
//! (Documentation/driver-api/early-userspace/buffer-format.rst in the kernel's tree).
//!
//! Uncompressed on purpose: unpacking costs more under emulation than loading more bytes does.
//! Owners and times are zero, so the same tree gives the same bytes.

use crate::tree::{Entry, Tree};

const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const LINK: u32 = 0o120_000;

/// The whole archive of `tree`.
pub(crate) fn archive(tree: &Tree) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (number, (path, entry)) in (1..).zip(tree.entries()) {
        let (mode, content): (u32, &[u8]) = match entry {
            Entry::Directory => (DIRECTORY | 0o755, &[]),
            Entry::File { mode, content } => (REGULAR | mode, content),
            Entry::Link { target } => (LINK | 0o777, target.as_bytes()),
        };
        member(&mut bytes, number, path, mode, content);
    }
    member(&mut bytes, 0, "TRAILER!!!", 0, &[]);
    bytes
}

fn member(bytes: &mut Vec<u8>, number: u32, path: &str, mode: u32, content: &[u8]) {
    let size = u32::try_from(content.len()).expect("a guest's file is far below 4 GiB");
    let path_size = u32::try_from(path.len() + 1).expect("a path is short");
    // inode, mode, owner, group, links, time, size, two device pairs, path size, checksum
    let fields = [number, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, path_size, 0];
    bytes.extend_from_slice(b"070701");
    for field in fields {
        bytes.extend_from_slice(format!("{field:08x}").as_bytes());
    }
    bytes.extend_from_slice(path.as_bytes());
    bytes.push(0);
    pad(bytes);
    bytes.extend_from_slice(content);
    pad(bytes);
}

/// Headers and contents start at multiples of four.
fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::process::{Command, Stdio};

    #[test]
    fn the_distribution_s_cpio_lists_what_was_put_in() {
        let mut tree = Tree::default();
        tree.file("etc/one", 0o644, b"abc".to_vec());
        tree.link("bin/two", "/etc/one");
        let mut child = Command::new("cpio")
            .args(["--list", "--verbose", "--numeric-uid-gid", "--quiet"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("cpio is among the packages that tests need");
        child.stdin.take().unwrap().write_all(&archive(&tree)).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success());
        let text = String::from_utf8(output.stdout).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 4, "{text}");
        assert!(
            lines.iter().any(|line| line.starts_with("-rw-r--r--") && line.ends_with(" etc/one"))
        );
        assert!(lines.iter().any(|line| line.ends_with("bin/two -> /etc/one")));
    }
}
