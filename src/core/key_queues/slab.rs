//! Storage for what queues are made of: numbered entries, each with one link to a next one.
//!
//! Chunks of [`CHUNK`] entries, so that growing never copies what is there (a vector of five million entries
//! would hold twice its size while it doubles), and a chunk that empties gives its memory back.

/// No entry: the end of a list.
pub(super) const NIL: u32 = u32::MAX;
/// Entries of one chunk: some 16 KiB of small items, large enough that a chunk's own bookkeeping is below 1 %.
const CHUNK: usize = 512;

/// A chunked slab of entries with one link each.
#[derive(Debug)]
pub(super) struct Slab<T> {
    chunks: Vec<Chunk<T>>,
    /// Chunks with room; the next entry goes into the last one of them.
    open: Vec<u32>,
    /// The chunk that emptied last: it alone keeps its memory while empty. Else one entry that comes and goes
    /// would allocate a chunk each time.
    spare: usize,
    len: usize,
}

#[derive(Debug)]
struct Chunk<T> {
    /// Empty while the chunk's memory is given back.
    entries: Vec<Entry<T>>,
    /// First free entry, by its place in the chunk.
    free: u32,
    used: u32,
}

#[derive(Debug)]
struct Entry<T> {
    value: Option<T>,
    /// Next of the list that the entry is in; next free one of the chunk if it is free.
    next: u32,
}

impl<T> Slab<T> {
    pub(super) fn new() -> Self {
        Self {
            chunks: Vec::new(),
            open: Vec::new(),
            spare: 0,
            len: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Bytes that this slab has taken from the allocator.
    pub(super) fn memory(&self) -> usize {
        let entries: usize = self.chunks.iter().map(|c| c.entries.capacity()).sum();
        entries * size_of::<Entry<T>>()
            + self.chunks.capacity() * size_of::<Chunk<T>>()
            + self.open.capacity() * size_of::<u32>()
    }

    pub(super) fn insert(&mut self, value: T) -> u32 {
        let chunk_no = match self.open.last() {
            Some(&no) => no as usize,
            None => {
                self.chunks.push(Chunk {
                    entries: Vec::new(),
                    free: NIL,
                    used: 0,
                });
                self.open.push((self.chunks.len() - 1) as u32);
                self.chunks.len() - 1
            }
        };
        let chunk = &mut self.chunks[chunk_no];
        let at = if chunk.free != NIL {
            let at = chunk.free as usize;
            let entry = &mut chunk.entries[at];
            chunk.free = entry.next;
            *entry = Entry {
                value: Some(value),
                next: NIL,
            };
            at
        } else {
            if chunk.entries.capacity() == 0 {
                chunk.entries.reserve_exact(CHUNK);
            }
            chunk.entries.push(Entry {
                value: Some(value),
                next: NIL,
            });
            chunk.entries.len() - 1
        };
        chunk.used += 1;
        if chunk.used as usize == CHUNK {
            self.open.pop();
        }
        self.len += 1;
        (chunk_no * CHUNK + at) as u32
    }

    pub(super) fn remove(&mut self, id: u32) -> Option<T> {
        let (chunk_no, at) = (id as usize / CHUNK, id as usize % CHUNK);
        let chunk = self.chunks.get_mut(chunk_no)?;
        let entry = chunk.entries.get_mut(at)?;
        let value = entry.value.take()?;
        entry.next = chunk.free;
        chunk.free = at as u32;
        if chunk.used as usize == CHUNK {
            self.open.push(chunk_no as u32);
        }
        chunk.used -= 1;
        self.len -= 1;
        if chunk.used == 0 && self.spare != chunk_no {
            let old = std::mem::replace(&mut self.spare, chunk_no);
            let old = &mut self.chunks[old];
            if old.used == 0 {
                old.entries = Vec::new();
                old.free = NIL;
            }
        }
        Some(value)
    }

    #[inline]
    fn entry(&self, id: u32) -> &Entry<T> {
        &self.chunks[id as usize / CHUNK].entries[id as usize % CHUNK]
    }

    #[inline]
    fn entry_mut(&mut self, id: u32) -> &mut Entry<T> {
        &mut self.chunks[id as usize / CHUNK].entries[id as usize % CHUNK]
    }

    /// The entry of a number that [`Slab::insert`] gave and that was not removed since.
    #[inline]
    pub(super) fn get(&self, id: u32) -> &T {
        self.entry(id).value.as_ref().expect("the number of a live entry")
    }

    #[inline]
    pub(super) fn get_mut(&mut self, id: u32) -> &mut T {
        self.entry_mut(id)
            .value
            .as_mut()
            .expect("the number of a live entry")
    }

    #[inline]
    pub(super) fn next(&self, id: u32) -> u32 {
        self.entry(id).next
    }

    #[inline]
    pub(super) fn set_next(&mut self, id: u32, next: u32) {
        self.entry_mut(id).next = next;
    }

    /// Live entries with their numbers.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &T)> + '_ {
        self.chunks.iter().enumerate().flat_map(|(no, chunk)| {
            chunk.entries.iter().enumerate().filter_map(move |(at, entry)| {
                entry
                    .value
                    .as_ref()
                    .map(|value| ((no * CHUNK + at) as u32, value))
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_used_again_and_memory_comes_back() {
        let mut slab = Slab::new();
        let ids: Vec<u32> = (0..CHUNK as u64 * 40).map(|i| slab.insert(i)).collect();
        let full = slab.memory();
        for (i, &id) in ids.iter().enumerate() {
            assert_eq!(slab.remove(id), Some(i as u64));
            assert_eq!(slab.remove(id), None);
        }
        assert_eq!(slab.len(), 0);
        assert!(slab.memory() < full / 10, "{} of {full} left", slab.memory());
        let again = slab.insert(7);
        assert!((again as usize) < CHUNK * 40);
        assert_eq!(*slab.get(again), 7);
    }
}
