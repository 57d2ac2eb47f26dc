// SPDX-License-Identifier: Apache-2.0
//! Pages of the ordered keys and values of an object: nodes of a tree.
//!
//! ```text
//!  0        4      5   6       8      10   16
//!  │ "PLNk" │ kind │ 0 │ count │ used │ 0  │ entries … │ 0
//!  leaf:    length of key (1), length of value (2), key, value
//!  branch:  length of key (1), page of the child (2), key: the least that the child may hold
//! ```
//!
//! A page is a block of an object of its own, so its checksum, its place and its copies are that
//! object's. Keys rise strictly within a page. Page 0 is the root and nobody's child.

use crate::PAGE_SIZE;

/// The longest key.
pub const KEY_MAX: usize = 255;
/// The longest value.
pub const VALUE_MAX: usize = 3072;
/// Pages of a tree: the blocks of an object.
pub const NODES_MAX: u16 = 1024;
/// Bytes for entries in a page.
pub const NODE_ROOM: usize = PAGE_SIZE - HEAD;

const HEAD: usize = 16;
const MAGIC: [u8; 4] = *b"PLNk";
const LEAF: u8 = 1;
const BRANCH: u8 = 2;
/// Bytes of an entry besides key and value.
const ENTRY_HEAD: usize = 3;

const _: () = assert!(ENTRY_HEAD + KEY_MAX + VALUE_MAX <= NODE_ROOM, "a page holds any one pair");

pub type Pair = (Vec<u8>, Vec<u8>);

/// A page, taken apart.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Node {
    Leaf(Vec<Pair>),
    /// The least key that a child may hold, and its page.
    Branch(Vec<(Vec<u8>, u16)>),
}

/// Why bytes are not a page of keys.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum NodeFault {
    #[error("the page is of another kind")]
    Kind,
    #[error("the entries of the page end inside one, or are fewer than it says")]
    Cut,
    #[error("the keys of the page are out of order")]
    Order,
    #[error("a child or length in the page cannot be")]
    Field,
}

impl Node {
    /// Takes a page apart.
    ///
    /// # Errors
    /// Names the first thing that is wrong.
    pub fn parse(page: &[u8]) -> Result<Self, NodeFault> {
        let (head, entries) = page.split_first_chunk::<HEAD>().ok_or(NodeFault::Cut)?;
        let number = |at: usize| usize::from(u16::from_le_bytes([head[at], head[at + 1]]));
        if !head.starts_with(&MAGIC) {
            return Err(NodeFault::Kind);
        }
        let (count, used) = (number(6), number(8));
        let mut rest = entries.get(..used).ok_or(NodeFault::Cut)?;
        let mut node = match head[4] {
            LEAF => Self::Leaf(Vec::with_capacity(count.min(used))),
            BRANCH => Self::Branch(Vec::with_capacity(count.min(used))),
            _ => return Err(NodeFault::Kind),
        };
        for _ in 0..count {
            rest = node.parse_entry(rest)?;
        }
        if !rest.is_empty() || count == 0 {
            return Err(NodeFault::Cut);
        }
        Ok(node)
    }

    fn parse_entry<'a>(&mut self, bytes: &'a [u8]) -> Result<&'a [u8], NodeFault> {
        let (&[length, low, high], rest) = bytes.split_first_chunk().ok_or(NodeFault::Cut)?;
        let number = u16::from_le_bytes([low, high]);
        let (key, rest) = rest.split_at_checked(usize::from(length)).ok_or(NodeFault::Cut)?;
        if self.last_key().is_some_and(|last| last >= key) {
            return Err(NodeFault::Order);
        }
        match self {
            Self::Leaf(pairs) => {
                let (value, rest) =
                    rest.split_at_checked(usize::from(number)).ok_or(NodeFault::Cut)?;
                if value.len() > VALUE_MAX {
                    return Err(NodeFault::Field);
                }
                pairs.push((key.to_vec(), value.to_vec()));
                Ok(rest)
            }
            Self::Branch(children) => {
                if number == 0 || number >= NODES_MAX {
                    return Err(NodeFault::Field);
                }
                children.push((key.to_vec(), number));
                Ok(rest)
            }
        }
    }

    /// Writes the page.
    ///
    /// # Panics
    /// If the node is larger than a page, or `into` is none.
    pub fn emit(&self, into: &mut [u8]) {
        let used = self.size();
        assert!(used <= NODE_ROOM && into.len() == PAGE_SIZE, "a node fits its page");
        let mut entries = Vec::with_capacity(used);
        let (kind, count) = match self {
            Self::Leaf(pairs) => {
                for (key, value) in pairs {
                    put_entry(&mut entries, key, value.len());
                    entries.extend_from_slice(value);
                }
                (LEAF, pairs.len())
            }
            Self::Branch(children) => {
                for (key, child) in children {
                    put_entry(&mut entries, key, usize::from(*child));
                }
                (BRANCH, children.len())
            }
        };
        let number = |value: usize| u16::try_from(value).unwrap_or(u16::MAX).to_le_bytes();
        into.fill(0);
        into[..4].copy_from_slice(&MAGIC);
        into[4] = kind;
        into[6..8].copy_from_slice(&number(count));
        into[8..10].copy_from_slice(&number(used));
        into[HEAD..HEAD + used].copy_from_slice(&entries);
    }

    /// Bytes of the entries.
    pub fn size(&self) -> usize {
        match self {
            Self::Leaf(pairs) => {
                pairs.iter().map(|(key, value)| ENTRY_HEAD + key.len() + value.len()).sum()
            }
            Self::Branch(children) => children.iter().map(|(key, _)| ENTRY_HEAD + key.len()).sum(),
        }
    }

    pub fn count(&self) -> usize {
        match self {
            Self::Leaf(pairs) => pairs.len(),
            Self::Branch(children) => children.len(),
        }
    }

    pub fn first_key(&self) -> Option<&[u8]> {
        match self {
            Self::Leaf(pairs) => pairs.first().map(|(key, _)| key.as_slice()),
            Self::Branch(children) => children.first().map(|(key, _)| key.as_slice()),
        }
    }

    fn last_key(&self) -> Option<&[u8]> {
        match self {
            Self::Leaf(pairs) => pairs.last().map(|(key, _)| key.as_slice()),
            Self::Branch(children) => children.last().map(|(key, _)| key.as_slice()),
        }
    }

    /// Cuts the node into as many as fit pages each. Pages are filled evenly, or to the brim when
    /// what was added is at the end: more will follow there.
    pub fn split(self, is_appended: bool) -> Vec<Self> {
        let size = self.size();
        if size <= NODE_ROOM {
            return vec![self];
        }
        let goal = if is_appended { NODE_ROOM } else { size.div_ceil(size.div_ceil(NODE_ROOM)) };
        match self {
            Self::Leaf(pairs) => {
                let length = |(key, value): &Pair| ENTRY_HEAD + key.len() + value.len();
                pack(pairs, goal, length).into_iter().map(Self::Leaf).collect()
            }
            Self::Branch(children) => {
                let length = |(key, _): &(Vec<u8>, u16)| ENTRY_HEAD + key.len();
                pack(children, goal, length).into_iter().map(Self::Branch).collect()
            }
        }
    }

    /// Puts the entries of the node that comes next behind this one's. `false` when it is of the
    /// other kind.
    pub fn join(&mut self, next: &Self) -> bool {
        match (self, next) {
            (Self::Leaf(pairs), Self::Leaf(more)) => pairs.extend_from_slice(more),
            (Self::Branch(children), Self::Branch(more)) => children.extend_from_slice(more),
            _ => return false,
        }
        true
    }
}

fn put_entry(into: &mut Vec<u8>, key: &[u8], number: usize) {
    into.push(u8::try_from(key.len()).unwrap_or(u8::MAX));
    into.extend_from_slice(&u16::try_from(number).unwrap_or(u16::MAX).to_le_bytes());
    into.extend_from_slice(key);
}

fn pack<T>(entries: Vec<T>, goal: usize, length: impl Fn(&T) -> usize) -> Vec<Vec<T>> {
    let mut parts: Vec<Vec<T>> = Vec::new();
    let mut used = usize::MAX;
    for entry in entries {
        let more = length(&entry);
        if used >= goal || used + more > NODE_ROOM {
            parts.push(Vec::new());
            used = 0;
        }
        used += more;
        if let Some(part) = parts.last_mut() {
            part.push(entry);
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(count: usize, length: usize) -> Node {
        let key = |number: usize| format!("key {number:05}").into_bytes();
        Node::Leaf((0..count).map(|number| (key(number), vec![7; length])).collect())
    }

    #[test]
    fn a_node_comes_back_as_it_went_and_every_fault_is_named() {
        let children = vec![(Vec::new(), 5), (b"k".to_vec(), 1023)];
        for node in [leaf(3, 100), leaf(1, VALUE_MAX), Node::Branch(children)] {
            let mut page = [0xee; PAGE_SIZE];
            node.emit(&mut page);
            assert_eq!(Node::parse(&page), Ok(node.clone()));
            let with = |at: usize, value: u8| {
                let mut bad = page;
                bad[at] = value;
                Node::parse(&bad)
            };
            assert_eq!(with(0, 0), Err(NodeFault::Kind));
            assert_eq!(with(4, 3), Err(NodeFault::Kind));
            assert_eq!(with(6, 9), Err(NodeFault::Cut));
            assert_eq!(with(9, 0xff), Err(NodeFault::Cut));
        }
        let parse = |node: Node| {
            let mut page = [0; PAGE_SIZE];
            node.emit(&mut page);
            Node::parse(&page)
        };
        let pair = |key: &[u8]| (key.to_vec(), Vec::new());
        assert_eq!(parse(Node::Leaf(vec![pair(b"b"), pair(b"a")])), Err(NodeFault::Order));
        assert_eq!(parse(Node::Leaf(vec![pair(b"a"), pair(b"a")])), Err(NodeFault::Order));
        assert_eq!(parse(Node::Branch(vec![(b"a".to_vec(), 0)])), Err(NodeFault::Field));
        assert_eq!(parse(Node::Branch(vec![(b"a".to_vec(), 1024)])), Err(NodeFault::Field));
        assert_eq!(parse(Node::Leaf(Vec::new())), Err(NodeFault::Cut));
    }

    #[test]
    fn a_node_is_cut_into_pages_that_hold_all_of_it() {
        for (node, is_appended) in
            [(leaf(100, 100), false), (leaf(100, 100), true), (leaf(3, VALUE_MAX), false)]
        {
            let count = node.count();
            let parts = node.clone().split(is_appended);
            assert!(parts.len() > 1 && parts.iter().all(|part| part.size() <= NODE_ROOM));
            let mut all = parts[0].clone();
            for part in &parts[1..] {
                assert!(all.join(part));
            }
            assert_eq!((all.count(), &all), (count, &node));
            if is_appended {
                assert!(parts[0].size() + 120 > NODE_ROOM, "the first is full to the brim");
            }
        }
    }
}
