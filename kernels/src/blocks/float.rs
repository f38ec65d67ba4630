//! Plain numbers, one per block. Integers and f64 are rounded to the nearest f32.

macro_rules! plain {
    ($($name:ident: $number:ty, $value:ident => $converted:expr;)*) => {
        $(pub(super) fn $name(block: &[u8], out: &mut [f32]) {
            let bytes = block.try_into().expect("a block of a plain format is one number");
            let $value = <$number>::from_le_bytes(bytes);
            out[0] = $converted;
        })*
    };
}

plain! {
    f32: f32, v => v;
    f16: half::f16, v => v.to_f32();
    bf16: half::bf16, v => v.to_f32();
    f64: f64, v => v as f32;
    i8: i8, v => f32::from(v);
    i16: i16, v => f32::from(v);
    i32: i32, v => v as f32;
    i64: i64, v => v as f32;
}
