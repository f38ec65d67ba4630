//! Sizes of published models.

use std::fmt;

/// Sizes of a mixture of experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpertShape {
    /// Experts per layer.
    pub count: usize,
    /// Experts per token.
    pub used: usize,
    /// Width of each expert's hidden layer.
    pub ffn: usize,
}

/// Llama 3's scaling of rope frequencies.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RopeScaling {
    /// By how much long waves are slowed.
    pub factor: f64,
    /// Waves that turn fewer times than this in the original context are slowed in full.
    pub low: f64,
    /// Waves that turn more often than this are kept.
    pub high: f64,
    /// Context before the scaling.
    pub original_context: f64,
}

/// All sizes of a model.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(missing_docs)] // names say it
pub struct Shape {
    /// Name as users write it.
    pub name: &'static str,
    /// `llama`, `qwen3` or `qwen3moe`.
    pub architecture: &'static str,
    pub layers: usize,
    pub hidden: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    /// Width of the feed-forward hidden layer; of a mixture, the width that its dense sister has.
    pub ffn: usize,
    pub experts: Option<ExpertShape>,
    pub vocabulary: usize,
    /// Does the token table also make the logits?
    pub tied: bool,
    /// Positions that the model was trained for.
    pub context: usize,
    pub rope_base: f32,
    pub rope_scaling: Option<RopeScaling>,
    pub norm_eps: f32,
}

const QWEN3: Shape = Shape {
    name: "",
    architecture: "qwen3",
    layers: 28,
    hidden: 1024,
    heads: 16,
    kv_heads: 8,
    head_dim: 128,
    ffn: 3072,
    experts: None,
    vocabulary: 151_936,
    tied: true,
    context: 40_960,
    rope_base: 1e6,
    rope_scaling: None,
    norm_eps: 1e-6,
};

const LLAMA3: Shape = Shape {
    name: "",
    architecture: "llama",
    layers: 32,
    hidden: 4096,
    heads: 32,
    kv_heads: 8,
    head_dim: 128,
    ffn: 14_336,
    experts: None,
    vocabulary: 128_256,
    tied: false,
    context: 131_072,
    rope_base: 500_000.0,
    rope_scaling: Some(RopeScaling { factor: 8.0, low: 1.0, high: 4.0, original_context: 8192.0 }),
    norm_eps: 1e-5,
};

/// Shapes that users can name.
pub const SHAPES: [Shape; 7] = [
    Shape { name: "qwen3-0.6b", ..QWEN3 },
    Shape { name: "qwen3-1.7b", hidden: 2048, ffn: 6144, ..QWEN3 },
    Shape { name: "qwen3-4b", layers: 36, hidden: 2560, heads: 32, ffn: 9728, ..QWEN3 },
    Shape {
        name: "qwen3-8b",
        layers: 36,
        hidden: 4096,
        heads: 32,
        ffn: 12_288,
        tied: false,
        ..QWEN3
    },
    Shape {
        name: "qwen3-30b-a3b",
        architecture: "qwen3moe",
        layers: 48,
        hidden: 2048,
        heads: 32,
        kv_heads: 4,
        ffn: 6144,
        experts: Some(ExpertShape { count: 128, used: 8, ffn: 768 }),
        tied: false,
        ..QWEN3
    },
    Shape {
        name: "llama-3.2-1b",
        layers: 16,
        hidden: 2048,
        head_dim: 64,
        ffn: 8192,
        tied: true,
        rope_scaling: Some(RopeScaling {
            factor: 32.0,
            low: 1.0,
            high: 4.0,
            original_context: 8192.0,
        }),
        ..LLAMA3
    },
    Shape { name: "llama-3.1-8b", ..LLAMA3 },
];

/// Not the name of a shape.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "shape {got:?} is not known; expected one of {}",
    SHAPES.map(|shape| shape.name).join(", ")
)]
pub struct UnknownShape {
    /// What was given.
    pub got: String,
}

impl std::str::FromStr for Shape {
    type Err = UnknownShape;

    /// The shape of this name, whatever the case.
    fn from_str(name: &str) -> Result<Self, UnknownShape> {
        let found = SHAPES.into_iter().find(|shape| shape.name.eq_ignore_ascii_case(name));
        found.ok_or_else(|| UnknownShape { got: name.to_owned() })
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl Shape {
    /// Divisors of the `head_dim / 2` rope frequencies (`rope_freqs.weight`), if they are scaled.
    pub fn rope_divisors(&self) -> Option<Vec<f32>> {
        let scaling = self.rope_scaling?;
        let divisor = |pair: usize| {
            let exponent = 2.0 * pair as f64 / self.head_dim as f64;
            let frequency = f64::from(self.rope_base).powf(-exponent);
            let turns = scaling.original_context * frequency / std::f64::consts::TAU;
            let kept = ((turns - scaling.low) / (scaling.high - scaling.low)).clamp(0.0, 1.0);
            (1.0 / ((1.0 - kept) / scaling.factor + kept)) as f32
        };
        Some((0..self.head_dim / 2).map(divisor).collect())
    }

    /// Weights of all matrices.
    pub fn parameters(&self) -> usize {
        let (q, kv) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let attention = self.hidden * (2 * q + 2 * kv);
        let ffn = match self.experts {
            Some(experts) => experts.count * (3 * experts.ffn + 1) * self.hidden,
            None => 3 * self.ffn * self.hidden,
        };
        let tables = if self.tied { 1 } else { 2 };
        self.layers * (attention + ffn) + tables * self.vocabulary * self.hidden
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_have_the_published_number_of_weights() {
        let published = [
            ("qwen3-0.6b", 0.596e9),
            ("qwen3-1.7b", 1.72e9),
            ("qwen3-4b", 4.02e9),
            ("qwen3-8b", 8.19e9),
            ("qwen3-30b-a3b", 30.5e9),
            ("llama-3.2-1b", 1.24e9),
            ("llama-3.1-8b", 8.03e9),
        ];
        for (name, want) in published {
            let shape: Shape = name.to_uppercase().parse().expect("a shape");
            let got = shape.parameters() as f64;
            assert!((got / want - 1.0).abs() < 0.005, "{name}: {got} for {want}");
        }
        let message = "gpt-5".parse::<Shape>().unwrap_err().to_string();
        assert!(message.contains("gpt-5") && message.contains("qwen3-8b"), "{message}");
    }

    #[test]
    fn rope_divisors_go_from_one_to_the_factor() {
        let shape: Shape = "llama-3.2-1b".parse().expect("a shape");
        let divisors = shape.rope_divisors().expect("scaled");
        assert_eq!((divisors.len(), divisors[0], divisors[31]), (32, 1.0, 32.0));
        assert!(divisors.is_sorted());
        assert!(divisors.iter().any(|&d| d > 1.0 && d < 32.0), "some lie between: {divisors:?}");
        assert_eq!("qwen3-8b".parse::<Shape>().expect("a shape").rope_divisors(), None);
    }
}
