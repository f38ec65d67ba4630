//! KV pages: a pool per model, a page table per sequence.
//!
//! A layer's pages lie in one domain, or in one for each phase where a plan moves them between the
//! phases; both domains then have a place for every page, under the same number.

mod keys;
mod pages;

use std::sync::Arc;

use trefoil_devices_api::{
    AllocRequest, Buffer, Device, DeviceError, DomainId, KvPages, MemoryManager, Phase, Purpose,
};
use trefoil_graph::KvShape;

pub use keys::PageKey;
pub use pages::PageCounts;
use pages::Pages;

/// Number format of stored keys and values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KvType {
    /// 32 bits.
    F32,
    /// 16 bits.
    #[default]
    F16,
}

impl KvType {
    /// Bytes of one element.
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 => 2,
        }
    }
}

/// The pages of a model's KV layers. A page number means the same place in every layer.
#[derive(Debug)]
pub struct KvPool {
    layout: KvPages,
    layers: Vec<Buffer>,
    /// Pages in decode of the layers that have other ones there.
    decode: Vec<Option<Buffer>>,
    pages: Pages,
}

impl KvPool {
    /// Pages for `tokens` tokens in all, one buffer per layer in its domain, taken from the host's
    /// memory or from the device whose memory it is.
    pub fn new(
        memory: &MemoryManager,
        devices: &[Arc<dyn Device>],
        shapes: &[KvShape],
        domains: &[DomainId],
        kv_type: KvType,
        page_tokens: usize,
        tokens: usize,
    ) -> Result<Self, DeviceError> {
        let pages = tokens.div_ceil(page_tokens);
        let half = kv_type == KvType::F16;
        let layout = KvPages { page_tokens, pages, half, shapes: shapes.to_vec() };
        let layers = (0..shapes.len())
            .zip(domains)
            .map(|(layer, &domain)| pages_in(memory, devices, layer_bytes(&layout, layer), domain))
            .collect::<Result<_, _>>()?;
        Ok(Self { layout, layers, decode: vec![None; shapes.len()], pages: Pages::new(pages) })
    }

    /// Adds places in the domains that layers have in decode, where they are other ones.
    ///
    /// # Errors
    /// Too little memory, or a domain that is not here.
    pub fn with_decode_domains(
        mut self,
        memory: &MemoryManager,
        devices: &[Arc<dyn Device>],
        domains: &[DomainId],
    ) -> Result<Self, DeviceError> {
        for (layer, &domain) in domains.iter().enumerate().take(self.layers.len()) {
            if self.layers[layer].domain != domain {
                let bytes = layer_bytes(&self.layout, layer);
                self.decode[layer] = Some(pages_in(memory, devices, bytes, domain)?);
            }
        }
        Ok(self)
    }

    /// Layers whose pages move between the phases.
    pub fn moved(&self) -> impl Iterator<Item = usize> {
        let moved = |(layer, decode): (usize, &Option<Buffer>)| decode.as_ref().map(|_| layer);
        self.decode.iter().enumerate().filter_map(moved)
    }

    /// Bytes of one page of a layer.
    pub fn page_bytes(&self, layer: usize) -> usize {
        page_bytes(&self.layout, layer)
    }

    /// Layout of the pages.
    pub fn layout(&self) -> &KvPages {
        &self.layout
    }

    /// Buffer of a layer in a phase.
    pub fn layer(&self, phase: Phase, layer: usize) -> &Buffer {
        match (phase, &self.decode[layer]) {
            (Phase::Decode, Some(decode)) => decode,
            _ => &self.layers[layer],
        }
    }

    /// Pages that nobody holds and that nothing is kept in.
    pub fn free_pages(&self) -> usize {
        self.pages.counts().free
    }

    /// Pages that sequences can get now: free ones, and those that are only kept.
    pub fn available_pages(&self) -> usize {
        self.pages.available()
    }

    /// How many pages are in which state.
    pub fn counts(&self) -> PageCounts {
        self.pages.counts()
    }

    /// Pages so far whose content was given up for another sequence, although it might have served one.
    pub fn evicted_pages(&self) -> u64 {
        self.pages.evicted()
    }

    /// All pages.
    pub fn total_pages(&self) -> usize {
        self.layout.pages
    }

    /// Makes `pages` long enough for `tokens` tokens. False, and nothing taken, if there are too few.
    pub fn grow(&mut self, pages: &mut Vec<u32>, tokens: usize) -> bool {
        let need = tokens.div_ceil(self.layout.page_tokens).saturating_sub(pages.len());
        if need > self.pages.available() {
            return false;
        }
        for _ in 0..need {
            pages.extend(self.pages.take());
        }
        true
    }

    /// Takes a sequence's pages back. Those with names are kept; the end of the sequence goes first.
    pub fn release(&mut self, pages: &mut Vec<u32>) {
        while let Some(page) = pages.pop() {
            self.pages.release(page);
        }
    }

    /// Lets one more sequence hold pages that are held.
    pub fn share(&mut self, pages: &[u32]) {
        pages.iter().for_each(|&page| self.pages.share(page));
    }

    /// The page of a name, held by one more; `None` if there is none.
    pub fn find(&mut self, key: PageKey) -> Option<u32> {
        let page = self.pages.find(key)?;
        self.pages.share(page);
        Some(page)
    }

    /// Does a sequence hold the page of a name?
    pub fn is_held(&self, key: PageKey) -> bool {
        self.pages.is_held(key)
    }

    /// Gives a full page its name, by which others find it. It must not be written again.
    pub fn name(&mut self, page: u32, key: PageKey) {
        self.pages.name(page, key);
    }

    /// Takes the name of a page away, so that its one holder may write it. False if others hold it.
    pub fn make_writable(&mut self, page: u32) -> bool {
        self.pages.make_writable(page)
    }

    /// Forgets what pages hold: those that were only kept are free.
    pub fn forget_names(&mut self) {
        self.pages.forget();
    }
}

fn page_bytes(layout: &KvPages, layer: usize) -> usize {
    let element = if layout.half { KvType::F16 } else { KvType::F32 }.bytes();
    layout.page_tokens * layout.shapes[layer].elements_per_token() * element
}

fn layer_bytes(layout: &KvPages, layer: usize) -> usize {
    layout.pages * page_bytes(layout, layer)
}

/// Memory in a domain: the host's, or that of the device whose it is.
fn pages_in(
    memory: &MemoryManager,
    devices: &[Arc<dyn Device>],
    bytes: usize,
    domain: DomainId,
) -> Result<Buffer, DeviceError> {
    if domain == DomainId::HOST {
        return memory.host_buffer(bytes, Purpose::Kv.holder());
    }
    let owner = devices.iter().find(|device| device.domains()[0].id == domain);
    let owner = owner.ok_or_else(|| DeviceError::BadRequest {
        what: "KV pages".to_owned(),
        expected: "memory of a device that is here".to_owned(),
        got: domain.to_string(),
    })?;
    owner.alloc(AllocRequest { domain, bytes, purpose: Purpose::Kv })
}

#[cfg(test)]
mod tests {
    use super::*;
    use trefoil_telemetry::Bytes;

    #[test]
    fn pages_are_taken_as_needed_and_come_back() {
        let memory = MemoryManager::default();
        memory.set_budget(DomainId::HOST, Bytes(1 << 20));
        let shape = KvShape { kv_heads: 2, head_dim: 4, window: None };
        let domains = [DomainId::HOST; 2];
        let mut pool = KvPool::new(&memory, &[], &[shape; 2], &domains, KvType::F16, 16, 100)
            .expect("fits the budget");
        assert_eq!(pool.total_pages(), 7);
        let mut pages = Vec::new();
        assert!(pool.grow(&mut pages, 17));
        assert_eq!(pages, [0, 1]);
        assert!(pool.grow(&mut pages, 20));
        assert_eq!(pages.len(), 2, "nothing more was needed");
        assert!(!pool.grow(&mut pages, 113));
        assert_eq!(pool.free_pages(), 5, "a refusal takes nothing");
        pool.release(&mut pages);
        assert_eq!(pool.free_pages(), 7);
    }
}
