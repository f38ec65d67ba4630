//! Names of pages by what is in them.

/// What is in a full page: a hash of every token from the sequence's beginning to the page's end, and
/// of what else the keys and values depend on. Pages of one model with equal names hold the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PageKey([u8; 16]);

impl PageKey {
    /// The name before the first page. `long_rope`: which of a model's rope tables the sequence uses.
    pub fn root(long_rope: bool) -> Self {
        Self::of(blake3::Hasher::new().update(&[u8::from(long_rope)]))
    }

    /// The name of the page that holds `tokens` behind the page of this name.
    pub fn then(self, tokens: &[u32]) -> Self {
        Self::of(blake3::Hasher::new().update(&self.0).update(bytemuck::cast_slice(tokens)))
    }

    fn of(hasher: &blake3::Hasher) -> Self {
        let mut key = [0; 16];
        key.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
        Self(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_all_that_came_before() {
        let root = PageKey::root(false);
        let page = root.then(&[1, 2]);
        assert_eq!(page, PageKey::root(false).then(&[1, 2]));
        let others =
            [PageKey::root(true).then(&[1, 2]), root.then(&[2, 1]), root.then(&[1]).then(&[2])];
        assert!(others.iter().all(|other| *other != page));
        assert_ne!(page.then(&[3]), root.then(&[3]));
    }
}
