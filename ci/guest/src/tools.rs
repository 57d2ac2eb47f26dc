// SPDX-License-Identifier: Apache-2.0
//! Programs that a guest gets on a disk of their own, because they are too large for its
//! initramfs: fio comes with some eighty megabytes of libraries.

use anyhow::{Context, Result, ensure};
use plinth_ids::{PoolId, VolumeId};
use plinth_stage::{Scratch, Store};
use plinth_store_api::{Attachment, Verb};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{fs, str};

const FIO: &str = "/usr/bin/fio";
const IMAGE_MIB: u64 = 160;

/// A volume with `fio` and, in `lib`, all that it is linked with; gives its socket.
pub(crate) fn volume_with_fio(
    scratch: &Scratch,
    store: &mut Store,
    pool: u32,
    volume: u64,
) -> Result<PathBuf> {
    let image = scratch.join("tools.raw");
    make_image(&scratch.join("tools"), &image)?;
    let (pool, volume) = (PoolId(pool), VolumeId(volume));
    let name = "tools".parse().context("a volume's name")?;
    store.call(Verb::VolumeCreate { pool, volume, name, size: IMAGE_MIB << 20 })?;
    store.call(Verb::VolumeImport { pool, volume, source: image })?;
    let socket = scratch.join("tools.sock");
    let attachment = Attachment {
        pool,
        volume,
        socket: socket.clone(),
        queues: 1,
        is_read_only: true,
        limits: None,
        worker: None,
    };
    store.config.attachments.push(attachment);
    store.apply()?;
    Ok(socket)
}

fn make_image(folder: &Path, image: &Path) -> Result<()> {
    let libraries = folder.join("lib");
    fs::create_dir_all(&libraries).context("the tools' folder")?;
    fs::copy(FIO, folder.join("fio")).context(FIO)?;
    for library in linked_with(FIO)? {
        let name = library.file_name().context("a library's name")?;
        fs::copy(&library, libraries.join(name)).with_context(|| library.display().to_string())?;
    }
    let made = Command::new("mke2fs")
        .args(["-q", "-t", "ext2", "-d"])
        .arg(folder)
        .arg(image)
        .arg(format!("{IMAGE_MIB}M"))
        .status()
        .context("mke2fs")?;
    ensure!(made.success(), "mke2fs: {made}");
    Ok(())
}

/// The libraries of a program and its loader, by the names that the loader looks for.
fn linked_with(program: &str) -> Result<Vec<PathBuf>> {
    let output = Command::new("ldd").arg(program).output().context("ldd")?;
    ensure!(output.status.success(), "ldd {program}: {}", output.status);
    let text = str::from_utf8(&output.stdout).context("what ldd says")?;
    let path =
        |line: &str| line.split_whitespace().find(|word| word.starts_with('/')).map(PathBuf::from);
    Ok(text.lines().filter_map(path).collect())
}
