// SPDX-License-Identifier: Apache-2.0
//! House rules that a program can see (STYLE's machine checks).
//!
//! A rule is a function from a file or a crate to complaints; the files come from git, so that
//! what is ignored is not judged. A complaint names the place and the remedy.

mod docs;
mod manifests;
mod sources;

use crate::{layers, shell};
use anyhow::{Context, Result, bail};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

/// One file of the project, by its path from the root.
#[derive(Debug)]
pub(crate) struct File {
    path: String,
    text: String,
}

pub(crate) fn run() -> Result<()> {
    let root = shell::root();
    let paths = listed(&root)?;
    let files = read(&root, &paths);
    let metadata = layers::metadata()?;
    let mut found = Vec::new();
    for file in &files {
        found.extend(sources::complaints(file));
        if file.path.ends_with(".md") {
            found.extend(docs::complaints(file, &paths));
        }
    }
    found.extend(manifests::complaints(&metadata, &files));
    for complaint in &found {
        println!("tidy: {complaint}");
    }
    if !found.is_empty() {
        bail!("{} complaints", found.len());
    }
    println!("== tidy: {} files keep to the house rules", files.len());
    Ok(())
}

/// Files that git knows or would add; the set also has every folder above them.
fn listed(root: &Path) -> Result<BTreeSet<String>> {
    let output = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard", "-z"])
        .current_dir(root)
        .output()
        .context("git could not be started")?;
    if !output.status.success() {
        bail!("git ls-files failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut paths = BTreeSet::new();
    for path in text.split('\0').filter(|path| !path.is_empty()) {
        // A file that was deleted but not yet committed is still in the index.
        if root.join(path).exists() {
            paths.insert(path.to_owned());
            paths.extend(Path::new(path).ancestors().skip(1).map(|up| up.display().to_string()));
        }
    }
    Ok(paths)
}

/// Text files only: what is not UTF-8 is data, and nobody reads its style.
fn read(root: &Path, paths: &BTreeSet<String>) -> Vec<File> {
    let texts = paths.iter().filter(|path| root.join(path).is_file());
    texts
        .filter_map(|path| {
            let text = fs::read_to_string(root.join(path)).ok()?;
            Some(File { path: path.clone(), text })
        })
        .collect()
}
