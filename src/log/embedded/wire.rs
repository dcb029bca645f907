//! Little-endian reading of what the log wrote. Every read can fail: the bytes come from a disk.

/// Takes values off the front of a slice; `None` once the bytes run out.
pub(super) struct Wire<'a>(pub &'a [u8]);

macro_rules! number {
    ($name:ident, $type:ty) => {
        /// The next number.
        #[inline]
        pub(super) fn $name(&mut self) -> Option<$type> {
            let (head, tail) = self.0.split_first_chunk()?;
            self.0 = tail;
            Some(<$type>::from_le_bytes(*head))
        }
    };
}

impl<'a> Wire<'a> {
    number!(u8, u8);
    number!(u16, u16);
    number!(u32, u32);
    number!(u64, u64);
    number!(u128, u128);

    /// The next `n` bytes.
    #[inline]
    pub(super) fn bytes(&mut self, n: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(n)?;
        self.0 = tail;
        Some(head)
    }

    /// A text with its length (u16) before it.
    pub(super) fn text(&mut self) -> Option<String> {
        let n = usize::from(self.u16()?);
        Some(std::str::from_utf8(self.bytes(n)?).ok()?.to_owned())
    }
}

/// Writes a text with its length before it; names are bounded to 64 KiB - 1 where they come in.
pub(super) fn put_text(out: &mut Vec<u8>, text: &str) {
    let bytes = &text.as_bytes()[..text.len().min(usize::from(u16::MAX))];
    out.extend_from_slice(&(bytes.len() as u16).to_le_bytes());
    out.extend_from_slice(bytes);
}

/// The next multiple of eight: frames begin there, so that a search for frames need not look at every byte.
pub(super) const fn align8(n: u64) -> u64 {
    n.div_ceil(8) * 8
}
