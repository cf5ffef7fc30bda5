//! Each kernel on each instruction set of this machine, at the shapes of a 130M model with 512
//! tokens: `cargo bench -p scalescope-sim`. `RAYON_NUM_THREADS` sets the threads.

use divan::Bencher;
use divan::counter::ItemsCount;
use half::f16;
use ndarray::Array2;
use scalescope_sim::arith::binary16::{narrow, widen};
use scalescope_sim::arith::hadamard::HadamardSize;
use scalescope_sim::arith::requant::{QuantRule, ScaleOrder};
use scalescope_sim::checkpoint::quantized;
use scalescope_sim::checkpoint::synthetic::{self, Shape};
use scalescope_sim::datapath::{Datapath, LogitRows};
use scalescope_sim::isa::Isa;
use scalescope_sim::kernels::matmul_f32::RealWeight;
use scalescope_sim::kernels::matmul_i8::matmul_i8;
use scalescope_sim::mode::ModeTable;
use scalescope_sim::model::Model;
use scalescope_sim::profile::Profile;
use scalescope_sim::quant::Scale;
use scalescope_sim::step::linear::Requantize;
use scalescope_sim::trace::Blind;

fn main() {
    divan::main();
}

const TOKENS: usize = 512;
const M: usize = 768;
const E: usize = 1536;

fn codes(rows: usize, columns: usize) -> Array2<i8> {
    Array2::from_shape_fn((rows, columns), |(r, c)| (r * 31 + c * 17) as i8)
}

fn product(bencher: Bencher, isa: Isa, rows: usize) {
    isa.limit();
    let (x, weight) = (codes(rows, M), codes(2 * E, M));
    let scale = Scale::new(0.01).unwrap();
    let epilogue = Requantize {
        a: scale.to_real(),
        b: scale,
        order: ScaleOrder::ChannelMajor,
        rule: QuantRule::NEAREST_EVEN,
    };
    let mut out = Array2::zeros((rows, 2 * E));
    bencher
        .counter(ItemsCount::new(2 * rows * M * 2 * E))
        .bench_local(|| matmul_i8(&x, weight.view(), &mut out, &epilogue));
}

/// 512 × 768 × 3072 with requantization; an item is an operation, two a multiply-add.
#[divan::bench(args = Isa::available())]
fn int8_product(bencher: Bencher, isa: &Isa) {
    product(bencher, *isa, TOKENS);
}

/// The same for one token.
#[divan::bench(args = Isa::available())]
fn int8_one_row(bencher: Bencher, isa: &Isa) {
    product(bencher, *isa, 1);
}

/// 512 × 768 × 3072 in FP32, weights binary16; an item is an operation.
#[divan::bench(args = Isa::available(), sample_count = 5)]
fn real_product(bencher: Bencher, isa: &Isa) {
    isa.limit();
    let x = Array2::from_elem((TOKENS, M), 0.5f32);
    let weight = Array2::from_elem((2 * E, M), f16::ONE);
    bencher
        .counter(ItemsCount::new(2 * TOKENS * M * 2 * E))
        .bench_local(|| RealWeight::F16(weight.view()).multiply(&x));
}

#[divan::bench(args = Isa::available())]
fn hadamard(bencher: Bencher, isa: &Isa) {
    isa.limit();
    let size = HadamardSize::of(E).unwrap();
    let mut rows = vec![1.0f32; 16 * E];
    bencher
        .counter(ItemsCount::new(rows.len()))
        .bench_local(|| size.transform(&mut rows));
}

#[divan::bench(args = Isa::available())]
fn quantize(bencher: Bencher, isa: &Isa) {
    isa.limit();
    let values: Vec<f32> = (0..16 * E).map(|i| i as f32 * 0.01 - 100.0).collect();
    let mut codes = vec![0; values.len()];
    let scale = Scale::new(0.7).unwrap();
    bencher
        .counter(ItemsCount::new(values.len()))
        .bench_local(|| QuantRule::HALF_AWAY.quantize_slice(&values, scale, &mut codes));
}

#[divan::bench(args = Isa::available())]
fn binary16(bencher: Bencher, isa: &Isa) {
    isa.limit();
    let mut values: Vec<f32> = (0..16 * E).map(|i| i as f32 * 0.01 - 100.0).collect();
    let mut halves = vec![f16::ZERO; values.len()];
    bencher
        .counter(ItemsCount::new(values.len()))
        .bench_local(|| {
            narrow(&values, &mut halves);
            widen(&halves, &mut values);
        });
}

/// Reading a quantized model of the 130M shape from a file, `scalescope-130m.safetensors` in the system's
/// temporary folder, which stays there.
#[divan::bench(sample_count = 10, sample_size = 1)]
fn load(bencher: Bencher) {
    let path = std::env::temp_dir().join("scalescope-130m.safetensors");
    let model = synthetic::quantized_model(Shape::named("130m").unwrap());
    quantized::write(&path, &model).unwrap();
    drop(model);
    bencher.bench_local(|| quantized::read(&path).unwrap());
}

/// One block of the 130M shape, 512 tokens: conv, scan and norm in their place.
#[divan::bench(args = Isa::available(), consts = [0, 1, 2], sample_count = 3)]
fn block<const PROFILE: usize>(bencher: Bencher, isa: &Isa) {
    isa.limit();
    let shape = Shape {
        n_layers: 1,
        vocab_size: 256,
        ..Shape::named("130m").unwrap()
    };
    let model = Model {
        quantized: Some(synthetic::quantized_model(shape).into()),
        ..Model::default()
    };
    let (mode, profile) = [("0", "exact"), ("2-1", "torch"), ("0", "deployed")][PROFILE];
    let profile = Profile::get(profile).unwrap();
    let table = ModeTable::default();
    let path = Datapath::new(&model, table.get(mode).unwrap(), &profile).unwrap();
    let tokens: Vec<u32> = (0..TOKENS as u32).map(|i| i % 256).collect();
    bencher
        .counter(ItemsCount::new(TOKENS))
        .bench_local(|| path.prefill(&tokens, LogitRows::Last, &mut Blind).unwrap());
}
