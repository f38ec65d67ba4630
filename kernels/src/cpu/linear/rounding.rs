//! Activations rounded to eight bits.
//!
//! A row is cut into spans of 32 or 256 columns. A span's scale is its largest magnitude / 127, its
//! codes are the nearest whole numbers (ties to even) to value * (127 / largest). A span with a
//! not-a-number or infinity in it gets a scale that makes every product not-a-number; one whose
//! values are all below 2^-100 counts as zero.
//!
//! Rows are kept in *panels* of up to [`PANEL`] rows, interleaved the way the product kernels read
//! them. Row counts of panels have no influence on results.

use std::ops::Range;

use super::super::ThreadPool;
use super::super::level::at_level;
use super::super::pool::SharedSlice;
use super::super::scratch::grown;
use super::formats::{IntegerForm, SHORT, Scaling};
use super::tile::pair;

/// Rows that a product kernel multiplies a tile of weights with at a time.
pub(in crate::cpu) const PANEL: usize = 12;

/// Columns that one sum of codes covers.
pub(in crate::cpu) const SUM: usize = 16;

/// Rounded rows.
#[derive(Debug, Default)]
pub(super) struct Rounded {
    rows: usize,
    columns: usize,
    span: usize,
    codes: Vec<i8>,
    panels: Vec<i8>,
    scales: Vec<f32>,
    sums: Vec<i32>,
    /// For the forms that read these rows: the first `form_count` are of the last filling.
    forms: Vec<FormSums>,
    form_count: usize,
}

/// What rows add for a form, panel after panel.
#[derive(Debug)]
struct FormSums {
    form: IntegerForm,
    groups: Vec<i32>,
    shifts: Vec<f32>,
}

/// What a panel of activations adds for a form.
#[derive(Clone, Copy, Debug)]
pub(in crate::cpu) struct PanelSums<'a> {
    /// `[columns / group][m]`: sums of codes; times minus the offset where the form has one (so that
    /// products of unsigned codes can start from it). For `Super` forms with minimums
    /// `[columns / group / 2][m]`, the sums of two groups in one number, the first in the low half.
    pub(in crate::cpu) groups: &'a [i32],
    /// `[columns / 32][m]`: sums of activations, for `Single` forms with minimums.
    pub(in crate::cpu) shifts: &'a [f32],
}

impl FormSums {
    /// Does the form keep the sums of two groups in one number?
    fn paired(form: IntegerForm) -> bool {
        form.minimum && form.scaling == Scaling::Super
    }

    fn group_columns(form: IntegerForm) -> usize {
        if Self::paired(form) { 2 * form.group } else { form.group }
    }

    /// Does the form add sums of activations times minimums?
    fn has_shifts(form: IntegerForm) -> bool {
        form.minimum && form.scaling == Scaling::Single
    }
}

/// Makes a panel's sums for a form from its sums of sixteen codes and its scales.
fn sum_panel(
    form: IntegerForm,
    m: usize,
    sums: &[i32],
    scales: &[f32],
    groups: &mut [i32],
    shifts: &mut [f32],
) {
    let factor = if form.offset == 0 { 1 } else { -form.offset };
    let per_group = form.group / SUM;
    let of_group = |sums: &[i32], row: usize| {
        factor * sums.iter().skip(row).step_by(m).take(per_group).sum::<i32>()
    };
    if FormSums::paired(form) {
        for (sums, out) in sums.chunks_exact(2 * per_group * m).zip(groups.chunks_exact_mut(m)) {
            let (first, second) = sums.split_at(per_group * m);
            for (row, out) in out.iter_mut().enumerate() {
                *out = pair(of_group(first, row), of_group(second, row));
            }
        }
    } else {
        for (sums, out) in sums.chunks_exact(per_group * m).zip(groups.chunks_exact_mut(m)) {
            for (row, out) in out.iter_mut().enumerate() {
                *out = of_group(sums, row);
            }
        }
    }
    for ((shift, scale), sum) in shifts.iter_mut().zip(scales).zip(groups) {
        *shift = scale * *sum as f32;
    }
}

/// Rows next to each other, `m` of them, interleaved.
#[derive(Clone, Copy, Debug)]
pub(in crate::cpu) struct Panel<'a> {
    /// `m`, at most [`PANEL`].
    pub(in crate::cpu) rows: usize,
    /// `[columns / 4][m][4]`.
    pub(in crate::cpu) codes: &'a [i8],
    /// `[columns / span][m]`.
    pub(in crate::cpu) scales: &'a [f32],
}

/// The rows of panel `index` when `rows` rows are cut into panels of about one size.
fn panel_rows(rows: usize, index: usize) -> Range<usize> {
    let panels = rows.div_ceil(PANEL).max(1);
    index * rows / panels..(index + 1) * rows / panels
}

impl Rounded {
    /// Rounds `x` (`[rows, columns]`, columns a multiple of the span).
    pub(super) fn fill(
        &mut self,
        pool: &ThreadPool,
        x: &[f32],
        columns: usize,
        span: usize,
        forms: impl Iterator<Item = IntegerForm>,
    ) {
        assert!(columns.is_multiple_of(span), "{columns} columns are no spans of {span}");
        let rows = x.len() / columns;
        (self.rows, self.columns, self.span) = (rows, columns, span);
        let codes = SharedSlice::new(grown(&mut self.codes, x.len()));
        let interleaved = if rows > 1 { x.len() } else { 0 };
        let panels = SharedSlice::new(grown(&mut self.panels, interleaved));
        let scales = SharedSlice::new(grown(&mut self.scales, x.len() / span));
        let sums = SharedSlice::new(grown(&mut self.sums, x.len() / SUM));
        self.form_count = 0;
        for form in forms {
            if self.forms[..self.form_count].iter().any(|have| have.form == form) {
                continue;
            }
            if self.forms.len() == self.form_count {
                self.forms.push(FormSums { form, groups: Vec::new(), shifts: Vec::new() });
            }
            let sums = &mut self.forms[self.form_count];
            sums.form = form;
            grown(&mut sums.groups, x.len() / FormSums::group_columns(form));
            grown(&mut sums.shifts, if FormSums::has_shifts(form) { x.len() / SHORT } else { 0 });
            self.form_count += 1;
        }
        let forms = self.forms[..self.form_count].iter_mut();
        let forms: Vec<_> = forms
            .map(|f| (f.form, SharedSlice::new(&mut f.groups), SharedSlice::new(&mut f.shifts)))
            .collect();
        let panel_count = rows.div_ceil(PANEL);
        let one = |index: usize, _: usize| {
            let range = panel_rows(rows, index);
            let part = |columns: usize| range.start * columns..range.end * columns;
            // SAFETY: panels do not share rows, and everything here belongs to the panel's rows.
            let (codes, scales, sums) = unsafe {
                (
                    codes.part(part(columns)),
                    scales.part(part(columns / span)),
                    sums.part(part(columns / SUM)),
                )
            };
            for (i, (x, codes)) in x[part(columns)]
                .chunks_exact(columns)
                .zip(codes.chunks_exact_mut(columns))
                .enumerate()
            {
                round_row(pool.level(), x, span, codes, (i, range.len()), scales, sums);
            }
            if rows > 1 {
                // SAFETY: as above.
                interleave(codes, columns, unsafe { panels.part(part(columns)) });
            }
            for (form, groups, shifts) in &forms {
                let shift_count = if FormSums::has_shifts(*form) { columns / SHORT } else { 0 };
                // SAFETY: as above.
                let (groups, shifts) = unsafe {
                    (
                        groups.part(part(columns / FormSums::group_columns(*form))),
                        shifts.part(part(shift_count)),
                    )
                };
                sum_panel(*form, range.len(), sums, scales, groups, shifts);
            }
        };
        // Rounding a few thousand numbers takes less time than waking a thread.
        if x.len() < 1 << 15 {
            (0..panel_count).for_each(|index| one(index, 0));
        } else {
            pool.run(panel_count, one);
        }
    }

    pub(super) fn panel_count(&self) -> usize {
        self.rows.div_ceil(PANEL)
    }

    /// Panel `index`, what it adds for one of the forms it was filled for, and its rows.
    pub(super) fn panel(
        &self,
        index: usize,
        form: IntegerForm,
    ) -> (Panel<'_>, PanelSums<'_>, Range<usize>) {
        let range = panel_rows(self.rows, index);
        let part = |columns: usize| range.start * columns..range.end * columns;
        let codes = if self.rows > 1 { &self.panels } else { &self.codes };
        let panel = Panel {
            rows: range.len(),
            codes: &codes[part(self.columns)],
            scales: &self.scales[part(self.columns / self.span)],
        };
        let mut forms = self.forms[..self.form_count].iter();
        let of_form = forms.find(|sums| sums.form == form).expect("filled for the form");
        let shifts = if FormSums::has_shifts(form) { self.columns / SHORT } else { 0 };
        let sums = PanelSums {
            groups: &of_form.groups[part(self.columns / FormSums::group_columns(form))],
            shifts: &of_form.shifts[part(shifts)],
        };
        (panel, sums, range)
    }
}

/// `[m][columns]` to `[columns / 4][m][4]`.
fn interleave(codes: &[i8], columns: usize, out: &mut [i8]) {
    let rows = codes.len() / columns;
    for (row, codes) in codes.chunks_exact(columns).enumerate() {
        let targets = out.as_chunks_mut::<4>().0[row..].iter_mut().step_by(rows);
        for (four, target) in codes.as_chunks::<4>().0.iter().zip(targets) {
            *target = *four;
        }
    }
}

at_level! {
    /// Rounds one row; `(index, count)` is its place in the panel that `scales` and `sums` are of.
    fn round_row(
        x: &[f32],
        span: usize,
        codes: &mut [i8],
        place: (usize, usize),
        scales: &mut [f32],
        sums: &mut [i32],
    ) = round_row_body;
}

#[inline(always)]
fn round_row_body(
    x: &[f32],
    span: usize,
    codes: &mut [i8],
    place: (usize, usize),
    scales: &mut [f32],
    sums: &mut [i32],
) {
    const TINY: f32 = 7.9e-31;
    let (index, count) = place;
    for (n, (x, codes)) in x.chunks_exact(span).zip(codes.chunks_exact_mut(span)).enumerate() {
        // Magnitudes compare as whole numbers, with not-a-number above all.
        let largest = x.iter().fold(0, |most: u32, v| most.max(v.to_bits() & 0x7fff_ffff));
        let largest = f32::from_bits(largest);
        let (scale, factor) = if largest < TINY {
            (0.0, 0.0)
        } else if largest.is_finite() {
            (largest / 127.0, 127.0 / largest)
        } else {
            (f32::NAN, 0.0)
        };
        scales[n * count + index] = scale;
        for (m, (x, codes)) in
            x.as_chunks::<SUM>().0.iter().zip(codes.as_chunks_mut::<SUM>().0).enumerate()
        {
            let mut sum = 0;
            for i in 0..SUM {
                let code = nearest(x[i] * factor);
                sum += code;
                codes[i] = code as i8;
            }
            sums[(n * span / SUM + m) * count + index] = sum;
        }
    }
}

/// The nearest whole number to one of at most some hundred thousand, ties to even.
#[inline(always)]
fn nearest(v: f32) -> i32 {
    const ROUND: f32 = 12_582_912.0;
    // The sum's low bits are the number; not-a-number gives one that is not used.
    ((v + ROUND).to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32).clamp(-127, 127)
}
