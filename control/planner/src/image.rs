// SPDX-License-Identifier: Apache-2.0
//! Images: sealed volumes that system disks are cloned from.
//!
//! An import is not resumed: an image that is still `creating` when the service starts was cut
//! off, and is deleted.

use crate::change::{Change, Key, Record};
use crate::cluster::Cluster;
use crate::names;
use crate::record::{Copy, ImageRecord, Meta, PoolRecord, State};
use plinth_api::{Code, ImageImport, ImportSource, Refusal};
use plinth_ids::{ImageId, Name, SnapshotId, VolumeId};

impl Cluster {
    /// The record of an image whose bytes are about to come.
    pub fn image_import(&self, request: &ImageImport, now: u64) -> Result<Change, Refusal> {
        names::free(&self.images, "image", &request.name)?;
        match &request.source {
            ImportSource::Path(path) if !path.starts_with('/') => {
                return Err(Refusal::new(Code::Invalid, format!("{path:?} is no absolute path"))
                    .field("--on-node"));
            }
            ImportSource::Stream { length: 0 } => {
                return Err(Refusal::new(Code::Invalid, "the image is empty").field("FILE"));
            }
            ImportSource::Path(_) | ImportSource::Stream { .. } => {}
        }
        let pools = self.import_pools(&request.pools)?;
        let copies: Vec<Copy> = pools
            .iter()
            .zip(self.meta.next_volume..)
            .zip(self.meta.next_snapshot..)
            .map(|((pool, volume), snapshot)| Copy {
                pool: pool.id,
                volume: VolumeId(volume),
                snapshot: Some(SnapshotId(snapshot)),
            })
            .collect();
        let meta = Meta {
            next_image: self.meta.next_image + 1,
            next_volume: self.meta.next_volume + copies.len() as u64,
            next_snapshot: self.meta.next_snapshot + copies.len() as u64,
            ..self.meta.clone()
        };
        let image = ImageRecord {
            id: ImageId(self.meta.next_image),
            name: request.name.clone(),
            state: State::Creating,
            size: None,
            copies,
            created_at: now,
        };
        Ok(Change::default().put(Record::Meta(meta)).put(Record::Image(image)))
    }

    fn import_pools(&self, names: &[Name]) -> Result<Vec<&PoolRecord>, Refusal> {
        let mut pools = Vec::new();
        for name in names {
            let pool = self.pick_pool(Some(name))?;
            if pools.contains(&pool) {
                return Err(Refusal::new(Code::Invalid, format!("pool {name} is named twice"))
                    .field("--pool"));
            }
            pools.push(pool);
        }
        if names.is_empty() {
            pools = self.pools.values().filter(|pool| pool.state == State::Ready).collect();
        }
        if pools.is_empty() {
            return Err(Refusal::new(Code::NotFound, "there is no pool")
                .field("--pool")
                .remedy("make one with `plinth pool create`"));
        }
        Ok(pools)
    }

    /// Every copy is made and has this size. `has_snapshot` says for each in turn whether it has
    /// the snapshot that it was to have.
    pub fn image_imported(&self, name: &Name, size: u64, has_snapshot: &[bool]) -> Change {
        match self.images.get(name) {
            Some(image) if image.state == State::Creating => {
                let size = Some(size);
                let mut image = ImageRecord { state: State::Ready, size, ..image.clone() };
                for (copy, has_snapshot) in image.copies.iter_mut().zip(has_snapshot) {
                    copy.snapshot = copy.snapshot.filter(|_| *has_snapshot);
                }
                Change::default().put(Record::Image(image))
            }
            _ => Change::default(),
        }
    }

    /// Images whose import was cut off, to be deleted.
    pub fn interrupted_imports(&self) -> Change {
        self.images
            .values()
            .filter(|image| image.state == State::Creating)
            .fold(Change::default(), |change, image| change.put(doomed(image)))
    }

    /// Gives up an import that failed: its copies are to be removed.
    pub fn image_abandon(&self, name: &Name) -> Change {
        match self.images.get(name) {
            Some(image) if image.state == State::Creating => Change::default().put(doomed(image)),
            _ => Change::default(),
        }
    }

    /// A node refuses it while clones stand on its copy; the image is then as it was.
    pub fn image_delete(&self, name: &Name) -> Result<Change, Refusal> {
        let image = names::find(&self.images, "image", "NAME", name)?;
        if image.state == State::Creating {
            return Err(Refusal::new(Code::State, format!("image {name} is being imported"))
                .field("NAME")
                .remedy("wait until it is done, or end the import"));
        }
        let making = |volume: &&crate::record::VolumeRecord| {
            volume.image == Some(image.id) && volume.state == State::Creating
        };
        if let Some(volume) = self.volumes.values().find(making) {
            return Err(Refusal::new(
                Code::InUse,
                format!("volume {} is being cloned from image {name}", volume.name),
            )
            .field("NAME")
            .remedy("wait until it is made"));
        }
        Ok(Change::default().put(doomed(image)))
    }

    /// A copy that its node keeps because clones stand on it keeps its image.
    pub(crate) fn image_stays(&self, name: &Name) -> Change {
        match self.images.get(name) {
            Some(image) if image.state == State::Deleting && image.size.is_some() => {
                let image = ImageRecord { state: State::Ready, ..image.clone() };
                Change::default().put(Record::Image(image))
            }
            _ => Change::default(),
        }
    }

    /// The snapshot of one copy is gone; the copy itself is next.
    pub(crate) fn copy_unfrozen(&self, name: &Name, volume: VolumeId) -> Change {
        let Some(image) = self.images.get(name).filter(|image| image.state == State::Deleting)
        else {
            return Change::default();
        };
        let mut image = image.clone();
        for copy in image.copies.iter_mut().filter(|copy| copy.volume == volume) {
            copy.snapshot = None;
        }
        Change::default().put(Record::Image(image))
    }

    /// One copy of an image that is to go is gone.
    pub(crate) fn copy_removed(&self, name: &Name, volume: VolumeId) -> Change {
        let Some(image) = self.images.get(name).filter(|image| image.state == State::Deleting)
        else {
            return Change::default();
        };
        let mut image = image.clone();
        image.copies.retain(|copy| copy.volume != volume);
        if image.copies.is_empty() {
            Change::default().delete(Key::Image(name.clone()))
        } else {
            Change::default().put(Record::Image(image))
        }
    }

    /// A usable image of that name.
    pub(crate) fn ready_image(&self, name: &Name) -> Result<(&ImageRecord, u64), Refusal> {
        let image = names::find(&self.images, "image", "--image", name)?;
        match (image.state, image.size) {
            (State::Ready, Some(size)) => Ok((image, size)),
            _ => Err(Refusal::new(Code::State, format!("image {name} is not ready"))
                .field("--image")
                .remedy("`plinth image list` shows its state")),
        }
    }
}

fn doomed(image: &ImageRecord) -> Record {
    Record::Image(ImageRecord { state: State::Deleting, ..image.clone() })
}
