//! Instruction levels: the same kernel compiled for several sets of vector instructions.

/// The vector instructions that kernels use, from the least to the most.
///
/// Results are the same at every level, bit for bit: all levels add in the same order and fuse the
/// same multiplications with additions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Whatever the target of the build has; right on every processor, and slow.
    Portable,
    /// AVX2, FMA and F16C.
    Avx2,
    /// AVX-512 F, BW, VL, DQ and VNNI.
    Avx512,
}

impl Level {
    /// The best level of this processor.
    pub fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::is_x86_feature_detected as has;
            if !(has!("avx2") && has!("fma") && has!("f16c")) {
                return Self::Portable;
            }
            if has!("avx512f")
                && has!("avx512bw")
                && has!("avx512vl")
                && has!("avx512dq")
                && has!("avx512vnni")
            {
                return Self::Avx512;
            }
            Self::Avx2
        }
        #[cfg(not(target_arch = "x86_64"))]
        Self::Portable
    }
}

/// Defines `fn name(level, …)` that runs the body, an `#[inline(always)]` function, compiled for the
/// level's instructions.
macro_rules! at_level {
    ($($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $kind:ty),* $(,)?) $(-> $result:ty)?
        = $body:path;)*) => {$(
        $(#[$meta])*
        $vis fn $name(level: $crate::cpu::Level, $($arg: $kind),*) $(-> $result)? {
            #[cfg(target_arch = "x86_64")]
            {
                use $crate::cpu::Level;
                #[target_feature(enable = "avx2,fma,f16c")]
                fn avx2($($arg: $kind),*) $(-> $result)? {
                    $body($($arg),*)
                }
                #[target_feature(
                    enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c"
                )]
                fn avx512($($arg: $kind),*) $(-> $result)? {
                    $body($($arg),*)
                }
                match level {
                    Level::Portable => $body($($arg),*),
                    // SAFETY: levels come from a thread pool, which holds none that the processor
                    // does not have.
                    Level::Avx2 => unsafe { avx2($($arg),*) },
                    // SAFETY: as above.
                    Level::Avx512 => unsafe { avx512($($arg),*) },
                }
            }
            #[cfg(not(target_arch = "x86_64"))]
            {
                let _ = level;
                $body($($arg),*)
            }
        }
    )*};
}
pub(super) use at_level;
