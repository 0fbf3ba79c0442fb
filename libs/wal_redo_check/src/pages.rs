//! The pages one worker owns, and the data directories they come from and are compared with.

mod places;
mod slab;

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::hash::{Hash, Hasher};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use postgres_ffi::v15::relfile::{RELSEG_SIZE, RelFileNode, relation_path};
use wal_redo::{PAGE_SIZE, PageBuf, PageTag};

use self::places::{Gone, Places, TagHasher};
use self::slab::Slab;

/// Relation files kept open at a time.
const OPEN_FILES_MAX: usize = 200;

/// A data directory, read page by page.
pub struct DataDir {
    root: PathBuf,
    /// Files by relation, fork and segment; `None` if there is no such file.
    open: HashMap<(RelFileNode, u8, u32), Option<File>>,
}

/// Relation of a page.
pub fn relation(tag: &PageTag) -> RelFileNode {
    RelFileNode {
        spcnode: tag.spcnode,
        dbnode: tag.dbnode,
        relnode: tag.relnode,
    }
}

impl DataDir {
    pub fn new(root: &Path) -> Self {
        DataDir {
            root: root.to_owned(),
            open: HashMap::new(),
        }
    }

    /// Reads a page; `None` if the file does not reach so far.
    pub fn page(&mut self, tag: &PageTag) -> io::Result<Option<Box<PageBuf>>> {
        let segment = tag.blkno / RELSEG_SIZE;
        let key = (relation(tag), tag.forknum, segment);
        if self.open.len() >= OPEN_FILES_MAX && !self.open.contains_key(&key) {
            self.open.clear();
        }
        let file = match self.open.entry(key) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => {
                let path = self.root.join(relation_path(key.0, key.1, key.2));
                let file = match File::open(&path) {
                    Ok(file) => Some(file),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                    Err(error) => return Err(error),
                };
                entry.insert(file)
            }
        };
        let Some(file) = file else {
            return Ok(None);
        };
        let mut page = Box::new([0; PAGE_SIZE]);
        let offset = u64::from(tag.blkno % RELSEG_SIZE) * PAGE_SIZE as u64;
        match file.read_exact_at(&mut page[..], offset) {
            Ok(()) => Ok(Some(page)),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// The worker that owns a page. The database does not count: a copied database's pages stay with their worker.
pub fn owner(tag: &PageTag, workers: usize) -> usize {
    let mut hasher = TagHasher::default();
    (tag.relnode, tag.forknum, tag.blkno).hash(&mut hasher);
    // The map of a worker's pages uses other bits.
    ((hasher.finish() >> 16) % workers as u64) as usize
}

/// Pages by their place. Those not changed yet are still in the base directory, if there is one.
pub struct Pages {
    changed: Places,
    slab: Slab,
    base: Base,
}

/// The base directory, less what the WAL has removed from it since.
struct Base {
    dir: Option<DataDir>,
    /// Databases and relations whose base files are gone, and forks cut short: (relation, fork) -> pages left.
    dropped_databases: HashSet<(u32, u32)>,
    dropped_relations: HashSet<RelFileNode>,
    truncated: HashMap<(RelFileNode, u8), u32>,
    /// Databases made by copying files: (tablespace, database) -> the same of the source.
    copies: HashMap<(u32, u32), (u32, u32)>,
}

impl Base {
    /// Reads a page; `None` if it is not there, or not any more.
    fn page(&mut self, tag: &PageTag) -> io::Result<Option<Box<PageBuf>>> {
        let Some(dir) = &mut self.dir else {
            return Ok(None);
        };
        let mut tag = *tag;
        loop {
            let gone = self.dropped_databases.contains(&(tag.spcnode, tag.dbnode))
                || self.dropped_relations.contains(&relation(&tag))
                || self
                    .truncated
                    .get(&(relation(&tag), tag.forknum))
                    .is_some_and(|&left| tag.blkno >= left);
            if gone {
                return Ok(None);
            }
            match self.copies.get(&(tag.spcnode, tag.dbnode)) {
                Some(&(spcnode, dbnode)) => (tag.spcnode, tag.dbnode) = (spcnode, dbnode),
                None => return dir.page(&tag),
            }
        }
    }
}

impl Pages {
    pub fn new(base: Option<&Path>) -> Self {
        Pages {
            changed: Places::default(),
            slab: Slab::default(),
            base: Base {
                dir: base.map(DataDir::new),
                dropped_databases: HashSet::new(),
                dropped_relations: HashSet::new(),
                truncated: HashMap::new(),
                copies: HashMap::new(),
            },
        }
    }

    /// Number of the page's entry, if something is known of the pages around it: good until pages are removed.
    #[inline]
    pub fn entry(&mut self, tag: &PageTag) -> Option<u32> {
        self.changed.entry(tag)
    }

    /// The page with this entry for changing, if it was changed before.
    #[inline]
    pub fn at(&mut self, entry: u32) -> Option<&mut PageBuf> {
        let place = self.changed.at(entry)?;
        Some(self.slab.page(place))
    }

    /// The page for changing, if it is known.
    #[inline]
    pub fn get(&mut self, tag: &PageTag) -> io::Result<Option<&mut PageBuf>> {
        match self.changed.get(tag) {
            Some(place) => Ok(Some(self.slab.page(place))),
            None => self.get_from_base(tag),
        }
    }

    #[cold]
    fn get_from_base(&mut self, tag: &PageTag) -> io::Result<Option<&mut PageBuf>> {
        match self.base.page(tag)? {
            Some(page) => {
                let new = self.add(*tag)?;
                *new = *page;
                Ok(Some(new))
            }
            None => Ok(None),
        }
    }

    /// The page for being made anew: made of zeros if it is not known yet, whatever the base directory has.
    #[inline]
    pub fn get_or_new(&mut self, tag: &PageTag) -> io::Result<&mut PageBuf> {
        match self.changed.get(tag) {
            Some(place) => Ok(self.slab.page(place)),
            None => self.add(*tag),
        }
    }

    /// The page for changing, made of zeros if it is not known.
    #[inline]
    pub fn get_or_zeros(&mut self, tag: &PageTag) -> io::Result<&mut PageBuf> {
        match self.changed.get(tag) {
            Some(place) => Ok(self.slab.page(place)),
            None => {
                let base = self.base.page(tag)?;
                let new = self.add(*tag)?;
                if let Some(base) = base {
                    *new = *base;
                }
                Ok(new)
            }
        }
    }

    /// A new page of zeros.
    fn add(&mut self, tag: PageTag) -> io::Result<&mut PageBuf> {
        let place = self.slab.add()?;
        let old = self.changed.insert(&tag, place);
        assert!(old.is_none(), "{tag:?} has a page already");
        Ok(self.slab.page(place))
    }

    pub fn put(&mut self, tag: PageTag, page: &PageBuf) -> io::Result<()> {
        let place = match self.changed.get(&tag) {
            Some(place) => self.slab.page(place),
            None => self.add(tag)?,
        };
        *place = *page;
        Ok(())
    }

    pub fn remove(&mut self, tag: &PageTag) {
        self.slab.free.extend(self.changed.remove(tag));
    }

    /// Forgets the pages from a block on of the relation forks for which `of` says so.
    fn remove_all(&mut self, from_block: u32, of: impl Fn(&PageTag) -> bool) {
        self.changed
            .remove_all(&Gone { of, from_block }, &mut self.slab.free);
    }

    /// All pages that were changed.
    pub fn changed(&self) -> impl Iterator<Item = (PageTag, &PageBuf)> {
        self.changed
            .iter()
            .map(|(tag, place)| (tag, self.slab.shared(place)))
    }

    pub fn forget_all(&mut self) {
        self.remove_all(0, |_| true);
        self.base.dir = None;
    }

    pub fn drop_relation(&mut self, dropped: RelFileNode) {
        self.remove_all(0, |tag| relation(tag) == dropped);
        self.base.dropped_relations.insert(dropped);
    }

    pub fn drop_database(&mut self, spcnode: u32, dbnode: u32) {
        self.remove_all(0, |tag| (tag.spcnode, tag.dbnode) == (spcnode, dbnode));
        self.base.dropped_databases.insert((spcnode, dbnode));
        self.base.copies.remove(&(spcnode, dbnode));
    }

    pub fn truncate(&mut self, truncated: RelFileNode, forknum: u8, blocks: u32) {
        self.remove_all(blocks, |tag| relation(tag) == truncated && tag.forknum == forknum);
        let left = self.base.truncated.entry((truncated, forknum)).or_insert(blocks);
        *left = blocks.min(*left);
    }

    /// A database's files were copied; each page of the copy belongs to the same worker as its source.
    pub fn copy_database(&mut self, from: (u32, u32), to: (u32, u32)) -> io::Result<()> {
        let copies: Vec<_> = self
            .changed
            .iter()
            .filter(|(tag, _)| (tag.spcnode, tag.dbnode) == from)
            .collect();
        for (tag, place) in copies {
            let copy = PageTag {
                spcnode: to.0,
                dbnode: to.1,
                ..tag
            };
            let page = *self.slab.page(place);
            self.put(copy, &page)?;
        }
        self.base.dropped_databases.remove(&to);
        self.base.copies.insert(to, from);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
