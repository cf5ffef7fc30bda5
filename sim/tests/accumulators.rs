//! Accumulators in the datapath: narrow registers against a scalar model, the default untouched,
//! traps reported.

use ndarray::Array2;
use scalescope_sim::arith::accumulate::{AccOverflow, Accumulator};
use scalescope_sim::arith::fixed::Scaling;
use scalescope_sim::arith::requant::{QuantRule, ScaleOrder};
use scalescope_sim::datapath::{Datapath, LogitRows};
use scalescope_sim::mode::ModeTable;
use scalescope_sim::profile::{LinearRule, Profile};
use scalescope_sim::quant::{Acc, QTensor, Scale};
use scalescope_sim::sample;
use scalescope_sim::step::linear::{LinearOutput, LinearWeight, linear};
use scalescope_sim::trace::{Recorder, Selection, Tensor};

fn codes(rows: usize, columns: usize, seed: usize) -> Array2<i8> {
    Array2::from_shape_fn((rows, columns), |(r, c)| {
        (((r * 131 + c * 71 + seed) * 2_654_435_761) >> 7) as i8
    })
}

#[test]
fn narrow_products_are_sums_term_by_term() {
    let (x, weight) = (codes(5, 96, 1), codes(37, 96, 2));
    let (s_in, s_w, s_out) = (0.02, 0.01, 0.4);
    let scale = |v| Scale::new(v).unwrap();
    for bits in [12, 16, 20, 21, 32, 48] {
        for overflow in AccOverflow::ALL {
            let rule = LinearRule {
                accumulator: Accumulator::new(bits, overflow).unwrap(),
                scaling: Scaling::F32,
                order: ScaleOrder::RowMajor,
                output: QuantRule::NEAREST_EVEN,
            };
            let tensor = Tensor::I8(QTensor {
                codes: x.clone(),
                scale: scale(s_in),
            });
            let weights = LinearWeight::int8(weight.view(), scale(s_w));
            let done = linear(
                &tensor,
                None,
                &weights,
                rule,
                LinearOutput::Int8(scale(s_out)),
            );
            let done = done.unwrap();
            let Tensor::I8(got) = done.out else { panic!() };
            let (low, high) = (-(1i64 << (bits - 1)), (1i64 << (bits - 1)) - 1);
            let mut overflows = 0;
            for ((t, n), got) in got.codes.indexed_iter() {
                let mut acc = 0i64;
                for k in 0..96 {
                    acc += i64::from(x[(t, k)]) * i64::from(weight[(n, k)]);
                    if !(low..=high).contains(&acc) {
                        overflows += 1;
                        acc = match overflow {
                            AccOverflow::Saturate => acc.clamp(low, high),
                            _ => (acc - low).rem_euclid(1 << bits) + low,
                        };
                    }
                }
                let a = scale(s_in).ratio(scale(s_out));
                let v = ScaleOrder::RowMajor.apply(a, scale(s_w), Acc(acc as i32));
                assert_eq!(*got, v.round_ties_even() as i8, "{bits} {overflow:?}");
            }
            assert_eq!(done.accumulated.overflows, overflows, "{bits} {overflow:?}");
            // 96·2^14 needs 22 bits: from there on nothing is watched.
            assert_eq!(done.accumulated.sums > 0, bits < 22);
            assert!(overflows > 0 || bits > 20, "{bits}: {overflows}");
        }
    }
}

/// The profile with every accumulator replaced.
fn with_accumulators(accumulator: Accumulator) -> Profile {
    let mut profile = Profile::get("exact").unwrap();
    for arithmetic in [&mut profile.cuda, &mut profile.torch] {
        for rules in [&mut arithmetic.prefill, &mut arithmetic.decode] {
            rules.conv.accumulator = accumulator;
            for linear in rules.linear.each_mut() {
                linear.accumulator = accumulator;
            }
        }
    }
    profile
}

fn logits(profile: &Profile) -> scalescope_sim::error::Result<Tensor> {
    let model = sample::model();
    let table = ModeTable::default();
    let path = Datapath::new(&model, table.get("0")?, profile)?;
    let mut recorder = Recorder::new(Selection::default());
    let tokens = [46, 37, 55, 1238, 47, 300, 12];
    Ok(path.prefill(&tokens, LogitRows::All, &mut recorder)?.0)
}

#[test]
fn wide_registers_change_nothing_and_narrow_ones_do() {
    let exact = logits(&Profile::get("exact").unwrap()).unwrap();
    for overflow in AccOverflow::ALL {
        let wide = with_accumulators(Accumulator::new(24, overflow).unwrap());
        assert_eq!(logits(&wide).unwrap(), exact);
    }
    let narrow = |bits, rule| with_accumulators(Accumulator::new(bits, rule).unwrap());
    let wrapped = logits(&narrow(14, AccOverflow::Wrap)).unwrap();
    let saturated = logits(&narrow(14, AccOverflow::Saturate)).unwrap();
    assert!(wrapped != exact && saturated != exact && wrapped != saturated);
    let trapped = logits(&narrow(14, AccOverflow::Trap))
        .unwrap_err()
        .to_string();
    assert!(
        trapped.starts_with(
            "block 0: in_proj: layer_00/in_proj_out: accumulator: expected sums within 14 bits"
        ),
        "{trapped}"
    );
}

/// A register that does not provably hold the sums, but holds those of the data, changes nothing:
/// the scalar convolution is the kernels', in every arithmetic.
#[test]
fn a_register_that_is_wide_enough_here_changes_nothing() {
    for name in ["exact", "deployed"] {
        let plain = Profile::get(name).unwrap();
        let text = format!("version = 1\nextends = \"{name}\"\n[accumulator.conv]\nbits = 17\n");
        let narrow = Profile::from_toml("narrow", &text).unwrap();
        assert_ne!(narrow.hash(), plain.hash());
        assert_eq!(logits(&narrow).unwrap(), logits(&plain).unwrap(), "{name}");
    }
}
