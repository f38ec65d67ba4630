use std::fmt;
use std::str::FromStr;

/// How products are computed. Everything else is f32 in every form.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum NumericForm {
    /// Weights decoded to f32: exact, whatever the file's format. Some providers compute it in bf16.
    #[default]
    F32,
    /// Weights and activations of products rounded to f16.
    F16,
    /// The file's own codes, in four bits or eight, with their scales (`MatMulNBits`): every value as the
    /// file has it, up to f32's rounding. For Q4_0, Q4_1, Q5_0, Q8_0, Q4_K and Q6_K; matrices of other
    /// formats stay f32.
    Codes,
    /// Weights of four bits in blocks of 32 with a scale (`MatMulNBits`): exact for Q4_0, all other
    /// formats are quantised anew. Matrices whose rows are no multiple of 32 stay f32.
    Int4,
}

/// A name that is no numeric form.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected a numeric form: f32, f16, codes or int4; got {0:?}")]
pub struct FormError(pub String);

impl NumericForm {
    /// All forms, the exact one first.
    pub const ALL: [Self; 4] = [Self::F32, Self::F16, Self::Codes, Self::Int4];

    /// Its name, as configurations have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Codes => "codes",
            Self::Int4 => "int4",
        }
    }
}

impl fmt::Display for NumericForm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for NumericForm {
    type Err = FormError;

    fn from_str(text: &str) -> Result<Self, FormError> {
        let form = Self::ALL.into_iter().find(|form| form.name() == text);
        form.ok_or_else(|| FormError(text.to_owned()))
    }
}
