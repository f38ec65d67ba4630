//! Who holds which page, and what is kept for a beginning that may come again.
//!
//! A page is *free*, *held* by one sequence or several, or *kept*: nobody holds it, but it has a name
//! and serves the next sequence that begins alike. Kept pages are given away, the one that was not used
//! for longest first, when no page is free. A page with a name is full and never written again.

use std::collections::{BTreeMap, HashMap};

use super::PageKey;

/// A page's state.
#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    holders: u32,
    key: Option<PageKey>,
    /// When it was last let go, if it is kept.
    kept_since: u64,
}

/// Numbers of pages in each state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PageCounts {
    /// Held by sequences; those that share one count it once.
    pub used: usize,
    /// Held by nobody, kept for a beginning that may come again.
    pub cached: usize,
    /// Free.
    pub free: usize,
}

/// The pages of a pool, by number.
#[derive(Debug)]
pub(super) struct Pages {
    slots: Vec<Slot>,
    /// Taken from the end: low numbers first, which keeps touched memory together.
    free: Vec<u32>,
    named: HashMap<PageKey, u32>,
    /// Kept pages by the time they were let go.
    kept: BTreeMap<u64, u32>,
    time: u64,
    evicted: u64,
}

impl Pages {
    pub(super) fn new(pages: usize) -> Self {
        Self {
            slots: vec![Slot::default(); pages],
            free: (0..pages as u32).rev().collect(),
            named: HashMap::new(),
            kept: BTreeMap::new(),
            time: 0,
            evicted: 0,
        }
    }

    pub(super) fn counts(&self) -> PageCounts {
        let (cached, free) = (self.kept.len(), self.free.len());
        PageCounts { used: self.slots.len() - cached - free, cached, free }
    }

    /// Kept pages that were given away so far.
    pub(super) fn evicted(&self) -> u64 {
        self.evicted
    }

    /// Pages that a sequence can get now.
    pub(super) fn available(&self) -> usize {
        self.free.len() + self.kept.len()
    }

    /// Takes a page for one holder: a free one, else the kept one that was not used for longest.
    pub(super) fn take(&mut self) -> Option<u32> {
        let page = match self.free.pop() {
            Some(page) => page,
            None => {
                let (_, page) = self.kept.pop_first()?;
                self.evicted += 1;
                self.unname(page);
                page
            }
        };
        self.slots[page as usize].holders = 1;
        Some(page)
    }

    /// One holder less.
    pub(super) fn release(&mut self, page: u32) {
        let slot = &mut self.slots[page as usize];
        slot.holders -= 1;
        if slot.holders > 0 {
            return;
        }
        if slot.key.is_none() {
            self.free.push(page);
            return;
        }
        self.time += 1;
        slot.kept_since = self.time;
        self.kept.insert(self.time, page);
    }

    /// One holder more of a page that is held or kept.
    pub(super) fn share(&mut self, page: u32) {
        let slot = &mut self.slots[page as usize];
        if slot.holders == 0 {
            self.kept.remove(&slot.kept_since);
        }
        slot.holders += 1;
    }

    /// The page of a name.
    pub(super) fn find(&self, key: PageKey) -> Option<u32> {
        self.named.get(&key).copied()
    }

    /// Is there a page of this name that somebody holds?
    pub(super) fn is_held(&self, key: PageKey) -> bool {
        self.find(key).is_some_and(|page| self.slots[page as usize].holders > 0)
    }

    /// Names a held page that is full. Where another one has the name already, this one gets none.
    pub(super) fn name(&mut self, page: u32, key: PageKey) {
        let slot = &mut self.slots[page as usize];
        if slot.key.is_none() && !self.named.contains_key(&key) {
            slot.key = Some(key);
            self.named.insert(key, page);
        }
    }

    /// May its one holder write it again? Takes its name away then.
    pub(super) fn make_writable(&mut self, page: u32) -> bool {
        let alone = self.slots[page as usize].holders == 1;
        if alone {
            self.unname(page);
        }
        alone
    }

    fn unname(&mut self, page: u32) {
        if let Some(key) = self.slots[page as usize].key.take() {
            self.named.remove(&key);
        }
    }

    /// Forgets all names: kept pages are free.
    pub(super) fn forget(&mut self) {
        self.named.clear();
        self.slots.iter_mut().for_each(|slot| slot.key = None);
        self.free.extend(std::mem::take(&mut self.kept).into_values());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u32) -> PageKey {
        PageKey::root(false).then(&[n])
    }

    fn counts(used: usize, cached: usize, free: usize) -> PageCounts {
        PageCounts { used, cached, free }
    }

    #[test]
    fn named_pages_are_kept_until_room_is_needed() {
        let mut pages = Pages::new(3);
        let taken = [(); 3].map(|()| pages.take().expect("three"));
        assert_eq!((taken, pages.take()), ([0, 1, 2], None));
        pages.name(0, key(0));
        pages.name(1, key(1));
        for page in [1, 0, 2] {
            pages.release(page);
        }
        assert_eq!(pages.counts(), counts(0, 2, 1));
        assert_eq!(pages.take(), Some(2), "free ones first");
        assert_eq!((pages.take(), pages.evicted()), (Some(1), 1), "then the oldest kept one");
        assert_eq!((pages.find(key(1)), pages.find(key(0))), (None, Some(0)));
        pages.share(0);
        assert_eq!(pages.counts(), counts(3, 0, 0));
        assert_eq!(pages.take(), None, "held pages are nobody else's");
    }

    #[test]
    fn shared_pages_stay_until_the_last_holder_goes() {
        let mut pages = Pages::new(2);
        let page = pages.take().expect("one");
        pages.name(page, key(7));
        pages.share(page);
        assert!(!pages.make_writable(page), "another reads it");
        pages.release(page);
        assert_eq!(pages.counts(), counts(1, 0, 1));
        assert!(pages.make_writable(page));
        assert_eq!(pages.find(key(7)), None, "what is written has no name");
        pages.release(page);
        assert_eq!(pages.counts(), counts(0, 0, 2));
    }

    #[test]
    fn a_name_belongs_to_one_page_and_can_be_forgotten() {
        let mut pages = Pages::new(2);
        let [a, b] = [(); 2].map(|()| pages.take().expect("two"));
        pages.name(a, key(1));
        pages.name(b, key(1));
        assert_eq!(pages.find(key(1)), Some(a));
        pages.release(b);
        assert_eq!(pages.counts(), counts(1, 0, 1), "the second one had no name");
        pages.release(a);
        pages.forget();
        assert_eq!((pages.counts(), pages.find(key(1))), (counts(0, 0, 2), None));
    }
}
