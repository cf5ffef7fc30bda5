//! Inline SVG: lines over tokens, intervals, histograms.

use maud::{Markup, html};

/// Numbers as labels have them.
fn label(value: f64) -> String {
    crate::output::number(value)
}

/// The next larger of 1, 2 or 5 times a power of ten.
fn round_step(at_least: f64) -> f64 {
    let power = 10f64.powf(at_least.log10().floor());
    let steps = [1.0, 2.0, 5.0, 10.0].map(|step| step * power);
    steps
        .into_iter()
        .find(|step| *step >= at_least)
        .unwrap_or(10.0 * power)
}

/// Round numbers between two: 1, 2 and 5 times powers of ten where they span a decade on a logarithmic axis,
/// else about four equal steps.
fn round_ticks(low: f64, high: f64, logarithmic: bool) -> Vec<f64> {
    if logarithmic && high / low > 10.0 {
        let powers = low.log10().floor() as i32..=high.log10().ceil() as i32;
        let steps = if high / low > 1e3 {
            &[1.0][..]
        } else {
            &[1.0, 2.0, 5.0]
        };
        let all = powers.flat_map(|power| steps.iter().map(move |step| step * 10f64.powi(power)));
        return all.filter(|v| (low..=high).contains(v)).collect();
    }
    let step = round_step((high - low) / 5.0);
    let first = (low / step).ceil() as i64;
    let all = (first..).map(|i| i as f64 * step);
    all.take_while(|v| *v <= high).collect()
}

/// A series with the range of its blocks.
pub struct Series<'a> {
    /// What it is.
    pub name: &'a str,
    /// CSS suffix: `one`, `two`.
    pub class: &'a str,
    /// Lower quartile, median, upper quartile over the blocks at each position.
    pub values: Vec<[f64; 3]>,
}

/// Lines with bands over a common axis; `x` holds the labels' positions, first to last.
pub fn lines(title: &str, x: &[usize], series: &[Series]) -> Markup {
    let (width, height, left, right, top, bottom) = (760.0, 230.0, 52.0, 150.0, 14.0, 30.0);
    let peak = series
        .iter()
        .flat_map(|s| s.values.iter().map(|v| v[2]))
        .fold(0.0, f64::max);
    let peak = if peak > 0.0 { peak * 1.05 } else { 1.0 };
    let tick = round_step(peak / 4.0);
    let count = x.len().max(2) - 1;
    let px = |i: usize| left + (width - left - right) * i as f64 / count as f64;
    let py = |v: f64| height - bottom - (height - top - bottom) * v / peak;
    let path = |values: &[[f64; 3]], which: usize| -> String {
        let point = |(i, v): (usize, &[f64; 3])| format!("{:.1},{:.1}", px(i), py(v[which]));
        values
            .iter()
            .enumerate()
            .map(point)
            .collect::<Vec<_>>()
            .join(" ")
    };
    let band = |values: &[[f64; 3]]| -> String {
        let back = values.iter().enumerate().rev();
        let low: Vec<String> = back
            .map(|(i, v)| format!("{:.1},{:.1}", px(i), py(v[0])))
            .collect();
        format!("{} {}", path(values, 2), low.join(" "))
    };
    let mut ends: Vec<f64> = Vec::new();
    for s in series {
        let y = py(s.values.last().map_or(0.0, |v| v[1]));
        ends.push(free_place(y, &ends, top..height - bottom));
    }
    let ticks = (0..)
        .map(|i| tick * f64::from(i))
        .take_while(|v| *v <= peak);
    let step = (x.len() / 8).max(1);
    html! {
        svg viewBox={ "0 0 " (width) " " (height) } width=(width) height=(height) role="img" {
            title { (title) }
            @for tick in ticks {
                line .axis x1=(left) x2=(width - right) y1=(format!("{:.1}", py(tick))) y2=(format!("{:.1}", py(tick))) {}
                text x=(left - 6.0) y=(format!("{:.1}", py(tick) + 4.0)) text-anchor="end" { (label(100.0 * tick)) " %" }
            }
            @for i in (0..x.len()).step_by(step) {
                text x=(format!("{:.1}", px(i))) y=(height - 10.0) text-anchor="middle" { (x[i]) }
            }
            text x=(width - right + 10.0) y=(height - 10.0) { "token" }
            @for s in series {
                polygon class={ "band-" (s.class) } points=(band(&s.values)) {}
            }
            @for (s, y) in series.iter().zip(&ends) {
                polyline class=(s.class) points=(path(&s.values, 1)) {
                    title { (s.name) ": " (s.values.last().map_or(String::new(), |v| label(v[1]))) " at the end" }
                }
                @let mut words = s.name.splitn(2, ", ");
                text class={ "name-" (s.class) } x=(width - right + 8.0) y=(format!("{y:.1}")) { (words.next().unwrap_or_default()) }
                text class={ "name-" (s.class) } x=(width - right + 8.0) y=(format!("{:.1}", y + 13.0)) { (words.next().unwrap_or_default()) }
            }
        }
    }
}

/// The place for a name of two lines nearest to `y` that overlaps none of `taken`, inside `range` if there
/// is one.
fn free_place(y: f64, taken: &[f64], range: std::ops::Range<f64>) -> f64 {
    const LINES: f64 = 28.0;
    // A name keeps two neighbouring places from others, at most.
    let places = 0..=2 * taken.len();
    let places = places.map(|i| {
        let away = LINES * i.div_ceil(2) as f64;
        if i % 2 == 0 { y + away } else { y - away }
    });
    let free: Vec<f64> = places
        .chain([y + LINES * (2 * taken.len() + 1) as f64])
        .filter(|place| taken.iter().all(|t| (t - place).abs() >= LINES))
        .collect();
    let inside = free.iter().find(|place| range.contains(place));
    inside.or(free.first()).copied().unwrap_or(y)
}

/// A named estimate with its interval.
pub struct Interval {
    /// Whose it is.
    pub name: String,
    /// The number.
    pub value: f64,
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
    /// What stands at the right.
    pub tied: String,
}

/// Estimates with intervals, one below the other in the order given; on a logarithmic axis if asked.
pub fn intervals(
    title: &str,
    rows: &[Interval],
    logarithmic: bool,
    show: impl Fn(f64) -> String,
) -> Markup {
    let (width, left, right, line) = (760.0, 90.0, 190.0, 24.0);
    let height = line * rows.len() as f64 + 34.0;
    let to = |v: f64| if logarithmic { v.ln() } else { v };
    let back = |v: f64| if logarithmic { v.exp() } else { v };
    let low = rows.iter().map(|r| to(r.low)).fold(f64::INFINITY, f64::min);
    let high = rows
        .iter()
        .map(|r| to(r.high))
        .fold(f64::NEG_INFINITY, f64::max);
    let margin = if high > low { 0.04 * (high - low) } else { 1.0 };
    let (low, high) = (low - margin, high + margin);
    let px = |v: f64| left + (width - left - right) * (to(v) - low) / (high - low);
    html! {
        svg viewBox={ "0 0 " (width) " " (height) } width=(width) height=(height) role="img" {
            title { (title) }
            @for v in round_ticks(back(low), back(high), logarithmic) {
                line .axis x1=(format!("{:.1}", px(v))) x2=(format!("{:.1}", px(v))) y1="4" y2=(height - 26.0) {}
                text x=(format!("{:.1}", px(v))) y=(height - 10.0) text-anchor="middle" { (show(v)) }
            }
            @for (i, row) in rows.iter().enumerate() {
                @let y = 16.0 + line * i as f64;
                text .strong x=(left - 12.0) y=(y + 4.0) text-anchor="end" { (row.name) }
                line .whisker x1=(format!("{:.1}", px(row.low))) x2=(format!("{:.1}", px(row.high))) y1=(y) y2=(y) {}
                circle .dot cx=(format!("{:.1}", px(row.value))) cy=(y) r="4" {
                    title { (row.name) ": " (show(row.value)) ", 95 % interval " (show(row.low)) " to " (show(row.high)) }
                }
                text x=(width - right + 12.0) y=(y + 4.0) { (show(row.value)) }
                text .strong x=(width - right + 90.0) y=(y + 4.0) { (row.tied) }
            }
        }
    }
}

/// Size of a histogram of codes.
const CODES: (f64, f64) = (96.0, 30.0);

/// The axis of every histogram of codes, for above or below a column of them.
pub fn code_axis() -> Markup {
    let width = CODES.0;
    let at = |code: f64| format!("{:.1}", width * (code + 128.5) / 256.0);
    html! {
        svg .codes viewBox={ "0 0 " (width) " 16" } width=(width) height="16" role="img" {
            title { "codes from −128 to 127" }
            line .axis x1="0" x2=(width) y1="15.5" y2="15.5" {}
            @for (code, anchor) in [(-128.0, "start"), (0.0, "middle"), (127.0, "end")] {
                line .axis x1=(at(code)) x2=(at(code)) y1="12" y2="16" {}
                text x=(at(code)) y="10" text-anchor=(anchor) { (format!("{code:.0}").replace('-', "−")) }
            }
        }
    }
}

/// How often each code came out, −128 to 127, on a logarithmic axis; the ends of the grid stand out
/// where values were clipped there.
pub fn histogram(counts: &[u64], clipped: bool, title: &str) -> Markup {
    let ((width, height), bins) = (CODES, 64usize);
    let per_bin = counts.len().div_ceil(bins);
    let sums: Vec<u64> = counts.chunks(per_bin).map(|c| c.iter().sum()).collect();
    let peak = sums.iter().copied().max().unwrap_or(0).max(1) as f64;
    let tall = |n: u64| match n {
        0 => 0.0,
        n => (height - 3.0) * (1.0 + n as f64).ln() / (1.0 + peak).ln(),
    };
    let step = width / bins as f64;
    let mut path = format!("M0 {height}");
    for (i, n) in sums.iter().enumerate() {
        let (x, y) = (step * i as f64, height - tall(*n));
        path += &format!("V{y:.1}H{:.1}", x + step);
    }
    path += &format!("V{height}Z");
    let ends = [(0, counts.first()), (bins - 1, counts.last())];
    html! {
        svg viewBox={ "0 0 " (width) " " (height) } width=(width) height=(height) role="img" {
            title { (title) ", most frequent bin " (peak) " values" }
            line .axis x1=(width / 2.0) x2=(width / 2.0) y1="0" y2=(height) {}
            path .bars d=(path) {}
            @for (bin, count) in ends {
                @let tall = tall(count.copied().unwrap_or(0));
                @if clipped && tall > 0.0 {
                    rect .clipped x=(step * bin as f64) y=(format!("{:.1}", height - tall)) width=(2.0 * step / 1.5) height=(format!("{tall:.1}")) {}
                }
            }
        }
    }
}

#[cfg(test)]
mod names {
    use super::free_place;

    #[test]
    fn never_overlap_and_always_find_a_place() {
        for step in 0..60 {
            let mut taken: Vec<f64> = Vec::new();
            // Two names with a gap too narrow for a third, then one between them and more.
            for y in [40.0, 40.0 + f64::from(step), 50.0, 55.0, 60.0, 14.0, 199.0] {
                let place = free_place(y, &taken, 14.0..200.0);
                assert!(
                    taken.iter().all(|t| (t - place).abs() >= 28.0),
                    "{step} {y} {taken:?}"
                );
                taken.push(place);
            }
        }
    }
}
