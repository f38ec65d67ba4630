//! KV pages: a pool per model, a page table per sequence.

use std::sync::Arc;

use trefoil_devices_api::{
    AllocRequest, Buffer, Device, DeviceError, DomainId, KvPages, MemoryManager, Purpose,
};
use trefoil_graph::KvShape;

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
    free: Vec<u32>,
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
        let layers = shapes
            .iter()
            .zip(domains)
            .map(|(shape, &domain)| {
                let bytes = pages * page_tokens * shape.elements_per_token() * kv_type.bytes();
                if domain == DomainId::HOST {
                    return memory.host_buffer(bytes, "KV cache");
                }
                let owner = devices.iter().find(|device| device.domains()[0].id == domain);
                let owner = owner.ok_or_else(|| DeviceError::BadRequest {
                    what: "KV pages".to_owned(),
                    expected: "memory of a device that is here".to_owned(),
                    got: domain.to_string(),
                })?;
                owner.alloc(AllocRequest { domain, bytes, purpose: Purpose::Kv })
            })
            .collect::<Result<_, _>>()?;
        let half = kv_type == KvType::F16;
        Ok(Self {
            layout: KvPages { page_tokens, pages, half, shapes: shapes.to_vec() },
            layers,
            // Taken from the end: low numbers first, which keeps touched memory together.
            free: (0..pages as u32).rev().collect(),
        })
    }

    /// Layout of the pages.
    pub fn layout(&self) -> &KvPages {
        &self.layout
    }

    /// Buffer of a layer.
    pub fn layer(&self, layer: usize) -> &Buffer {
        &self.layers[layer]
    }

    /// Pages that nobody holds.
    pub fn free_pages(&self) -> usize {
        self.free.len()
    }

    /// All pages.
    pub fn total_pages(&self) -> usize {
        self.layout.pages
    }

    /// Makes `pages` long enough for `tokens` tokens. False, and nothing taken, if there are too few.
    pub fn grow(&mut self, pages: &mut Vec<u32>, tokens: usize) -> bool {
        let need = tokens.div_ceil(self.layout.page_tokens).saturating_sub(pages.len());
        if need > self.free.len() {
            return false;
        }
        for _ in 0..need {
            pages.extend(self.free.pop());
        }
        true
    }

    /// Takes every page back, whoever held it.
    pub fn release_all(&mut self) {
        self.free.clear();
        self.free.extend((0..self.layout.pages as u32).rev());
    }

    /// Takes pages back.
    pub fn release(&mut self, pages: &mut Vec<u32>) {
        self.free.append(pages);
    }
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
