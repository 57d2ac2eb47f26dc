// SPDX-License-Identifier: Apache-2.0
//! Rules about crates: unsafe code stays in the fences, pure crates have the pure settings.

use super::File;
use crate::layers::{Kind, Metadata, Package};

/// The crates that may hold `unsafe`. Adding a name needs an ADR.
const FENCES: &[&str] = &[
    "plinth-bulk",
    "plinth-dpdk",
    "plinth-dpdk-sys",
    "plinth-guest-memory",
    "plinth-metrics",
    "plinth-rt",
    "plinth-tap",
    "plinth-uring",
    "plinth-virtio",
];

const PURE_SETTINGS: &str = "ci/pure-clippy.toml";

pub(super) fn complaints(metadata: &Metadata, files: &[File]) -> Vec<String> {
    let mut found = Vec::new();
    for package in &metadata.packages {
        let Some(kind) = package.kind() else { continue };
        let folder = package.folder(metadata);
        found.extend(fence(package, kind));
        found.extend(roots(&folder, kind, files));
        found.extend(settings(&folder, kind, files));
        found.extend(prints(&folder, kind, files));
    }
    found
}

fn fence(package: &Package, kind: Kind) -> Option<String> {
    let is_listed = FENCES.contains(&&*package.name);
    ((kind == Kind::Fence) != is_listed).then(|| {
        let name = &package.name;
        format!("{name} is {kind}; the list of fences (ci/xtask/src/tidy/manifests.rs) differs")
    })
}

/// What the crate's root says about unsafe code.
fn roots(folder: &str, kind: Kind, files: &[File]) -> Vec<String> {
    let inside = format!("{folder}/");
    let sources = files.iter().filter(|file| {
        file.path
            .strip_prefix(&*inside)
            .is_some_and(|rest| rest.starts_with("src/") && rest.ends_with(".rs"))
    });
    let mut found = Vec::new();
    for file in sources {
        let is_root = file.path == format!("{folder}/src/lib.rs");
        let forbids = file.text.contains("#![forbid(unsafe_code)]");
        if is_root && kind.is_worldless() && !forbids {
            found
                .push(format!("{}: a {kind} crate starts with #![forbid(unsafe_code)]", file.path));
        }
        let allows = file.text.lines().any(|line| {
            let line = line.trim_start();
            line.starts_with("#")
                && line.contains("(unsafe_code")
                && (line.contains("[allow") || line.contains("[expect"))
        });
        if allows && kind != Kind::Fence {
            found.push(format!("{}: only fences allow unsafe code; this is {kind}", file.path));
        }
    }
    found
}

/// A crate's own clippy.toml replaces the root's, so a pure crate's must be the whole template.
fn settings(folder: &str, kind: Kind, files: &[File]) -> Option<String> {
    let text = |path: &str| files.iter().find(|file| file.path == path).map(|file| &file.text);
    let path = format!("{folder}/clippy.toml");
    match (text(&path), text(PURE_SETTINGS)) {
        (None, _) if kind == Kind::Pure => Some(format!("{path} is missing; copy {PURE_SETTINGS}")),
        (Some(own), Some(template)) if kind.is_worldless() && own != template => {
            Some(format!("{path} differs from {PURE_SETTINGS}; copy it again"))
        }
        _ => None,
    }
}

/// Libraries of the product do not print; tests, which stand at a file's end, and tools may.
fn prints(folder: &str, kind: Kind, files: &[File]) -> Vec<String> {
    let is_tool = folder.starts_with("ci/") || folder.starts_with("perf/");
    if kind == Kind::Program || is_tool {
        return Vec::new();
    }
    let inside = format!("{folder}/src/");
    let mut found = Vec::new();
    for file in files.iter().filter(|file| file.path.starts_with(&inside)) {
        let code = file.text.lines().enumerate();
        for (index, line) in code.take_while(|(_, line)| line.trim() != "#[cfg(test)]") {
            let line = line.trim_start();
            if line.starts_with("println!(") || line.starts_with("eprintln!(") {
                found.push(format!("{}:{}: only programs print", file.path, index + 1));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, text: &str) -> File {
        File { path: path.to_owned(), text: text.to_owned() }
    }

    #[test]
    fn a_pure_root_forbids_unsafe_code() {
        let files = [file("a/b/src/lib.rs", "fn x() {}\n")];
        assert_eq!(roots("a/b", Kind::Pure, &files).len(), 1);
        assert_eq!(roots("a/b", Kind::Driver, &files), Vec::<String>::new());
        let files = [file("a/b/src/lib.rs", "#![forbid(unsafe_code)]\n")];
        assert_eq!(roots("a/b", Kind::Pure, &files), Vec::<String>::new());
    }

    #[test]
    fn only_fences_allow_unsafe_code() {
        let files = [file("a/b/src/deep/x.rs", "  #![allow(unsafe_code, reason = \"…\")]\n")];
        assert_eq!(roots("a/b", Kind::Driver, &files).len(), 1);
        assert_eq!(roots("a/b", Kind::Fence, &files), Vec::<String>::new());
    }

    #[test]
    fn pure_settings_are_the_template() {
        let template = file(PURE_SETTINGS, "x = 1\n");
        let other = file("a/b/clippy.toml", "x = 2\n");
        assert!(settings("a/b", Kind::Pure, &[template, other]).unwrap().contains("differs"));
        assert!(settings("a/b", Kind::Pure, &[]).unwrap().contains("missing"));
        assert_eq!(settings("a/b", Kind::Driver, &[]), None);
    }

    #[test]
    fn libraries_do_not_print_outside_their_tests() {
        let text = "println!(\"a\");\n#[cfg(test)]\nprintln!(\"b\");\n";
        let files = [file("a/b/src/lib.rs", text)];
        assert_eq!(prints("a/b", Kind::Driver, &files), ["a/b/src/lib.rs:1: only programs print"]);
        assert_eq!(prints("a/b", Kind::Program, &files), Vec::<String>::new());
        let files = [file("ci/b/src/lib.rs", text)];
        assert_eq!(prints("ci/b", Kind::Driver, &files), Vec::<String>::new());
    }
}
