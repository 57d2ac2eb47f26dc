// SPDX-License-Identifier: Apache-2.0
//! The guest's files before they become an archive or a file system.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Entry {
    Directory,
    File { mode: u32, content: Vec<u8> },
    Link { target: String },
}

/// Paths without a leading slash, parents before children, since they sort that way.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tree {
    entries: BTreeMap<String, Entry>,
}

impl Tree {
    pub(crate) fn entries(&self) -> impl Iterator<Item = (&str, &Entry)> {
        self.entries.iter().map(|(path, entry)| (path.as_str(), entry))
    }

    pub(crate) fn directory(&mut self, path: &str) {
        self.parents(path);
        self.entries.entry(path.to_owned()).or_insert(Entry::Directory);
    }

    pub(crate) fn file(&mut self, path: &str, mode: u32, content: Vec<u8>) {
        self.parents(path);
        self.entries.insert(path.to_owned(), Entry::File { mode, content });
    }

    pub(crate) fn link(&mut self, path: &str, target: &str) {
        self.parents(path);
        self.entries.insert(path.to_owned(), Entry::Link { target: target.to_owned() });
    }

    fn parents(&mut self, path: &str) {
        for (at, _) in path.match_indices('/') {
            self.entries.entry(path[..at].to_owned()).or_insert(Entry::Directory);
        }
    }

    /// Bytes of all contents.
    pub(crate) fn size(&self) -> u64 {
        let size = |entry: &Entry| match entry {
            Entry::File { content, .. } => content.len() as u64,
            Entry::Directory | Entry::Link { .. } => 0,
        };
        self.entries.values().map(size).sum()
    }

    /// Writes everything below an empty folder.
    pub(crate) fn write_below(&self, folder: &Path) -> io::Result<()> {
        for (path, entry) in self.entries() {
            let path = folder.join(path);
            match entry {
                Entry::Directory => std::fs::create_dir(&path)?,
                Entry::File { mode, content } => {
                    std::fs::write(&path, content)?;
                    std::fs::set_permissions(&path, PermissionsExt::from_mode(*mode))?;
                }
                Entry::Link { target } => symlink(target, &path)?,
            }
        }
        Ok(())
    }

    /// A number that changes when any path, mode or content does.
    pub(crate) fn fingerprint(&self) -> u64 {
        let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc64Nvme);
        for (path, entry) in self.entries() {
            let (kind, mode, content): (u8, u32, &[u8]) = match entry {
                Entry::Directory => (0, 0, &[]),
                Entry::File { mode, content } => (1, *mode, content),
                Entry::Link { target } => (2, 0, target.as_bytes()),
            };
            let lengths = format!("{kind} {mode} {} {}\n", path.len(), content.len());
            digest.update(lengths.as_bytes());
            digest.update(path.as_bytes());
            digest.update(content);
        }
        digest.finalize()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parents_come_before_children() {
        let mut tree = Tree::default();
        tree.file("a/b/c", 0o644, Vec::new());
        let paths: Vec<&str> = tree.entries().map(|(path, _)| path).collect();
        assert_eq!(paths, ["a", "a/b", "a/b/c"]);
    }

    #[test]
    fn the_fingerprint_sees_path_mode_and_content() {
        let one = |path: &str, mode, content: &[u8]| {
            let mut tree = Tree::default();
            tree.file(path, mode, content.to_vec());
            tree.fingerprint()
        };
        let base = one("a", 0o644, b"x");
        assert_eq!(base, one("a", 0o644, b"x"));
        assert_ne!(base, one("b", 0o644, b"x"));
        assert_ne!(base, one("a", 0o755, b"x"));
        assert_ne!(base, one("a", 0o644, b"y"));
    }
}
