//! Launches of one token that follow each other, in one: for a single row a step takes less time than the wait
//! between two launches. Steps that are queued with other types, rows or rules than the kernels of
//! `kernels/decode.cu` have stay as they are.

use super::args::{Arg, Conv, LinearI8, Norm, Pointer, Scan, Sink, Source, Type};
use super::device::{Launch, Queued};
use std::collections::{HashMap, HashSet};

/// Threads of a block of each kernel; norm_to_conv has a warp for each output, up to the most there are.
const MOST_THREADS: usize = 768;
const SCAN_THREADS: usize = 512;
const ROTATION_THREADS: usize = 256;
/// Threads that carry states, as in the scan by itself; its tokens in shared memory.
const STATES_AT_ONCE: usize = 256;
const CHUNK: usize = 16;
/// Shared memory a block can have on every device of compute capability 8.0 and more.
const MAX_SHARED: usize = 99 << 10;
/// The scans that kernels fuse.
const SCANS: [&str; 4] = [
    "scan_fused_correctly_rounded",
    "scan_grouped_unit_subnormal",
    "scan_separate_libm",
    "scan_separate_correctly_rounded",
];

fn up_to_16(n: usize) -> usize {
    n.next_multiple_of(16)
}

/// Fuses what can be. `places` says where states after the token go, which lie elsewhere at first; also returns the
/// states that are now made there at once.
pub fn fuse(
    queued: Vec<Queued>,
    places: &HashMap<Pointer, Pointer>,
    multiprocessors: u32,
) -> (Vec<Queued>, HashSet<Pointer>) {
    let mut fuser = Fuser {
        places,
        in_place: HashSet::new(),
        multiprocessors: multiprocessors as usize,
    };
    let mut out = Vec::new();
    let mut rest = queued.into_iter().peekable();
    let mut window: Vec<Queued> = Vec::new();
    loop {
        while window.len() < 4 && rest.peek().is_some() {
            window.extend(rest.next());
        }
        if window.is_empty() {
            return (out, fuser.in_place);
        }
        let kernels: Vec<&Launch> = window.iter().map_while(kernel).collect();
        let fused = fuser
            .norm_to_conv(&kernels)
            .map(|launch| (launch, 4))
            .or_else(|| Some((fuser.projections_to_scan(&kernels)?, 3)))
            .or_else(|| Some((fuser.rotation_to_out(&kernels)?, 2)));
        match fused {
            Some((launch, count)) => {
                window.drain(..count);
                out.push(Queued::Kernel(launch));
            }
            None => out.push(window.remove(0)),
        }
    }
}

fn kernel(queued: &Queued) -> Option<&Launch> {
    match queued {
        Queued::Kernel(launch) => Some(launch),
        Queued::Zero(..) => None,
    }
}

/// An argument, if it has this type.
fn arg<T: Arg + Copy>(launch: &Launch, index: usize) -> Option<T> {
    let arg: &dyn std::any::Any = &**launch.args.get(index)?;
    arg.downcast_ref().copied()
}

/// One row times a weight, and where it goes.
fn product_of_a_row(launch: &Launch) -> Option<(LinearI8, Sink)> {
    let (product, out): (LinearI8, Sink) = (arg(launch, 0)?, arg(launch, 1)?);
    (launch.name == "linear_i8_rows" && product.rows == 1 && out.quantizer.status == 0)
        .then_some((product, out))
}

/// Codes that nobody counts.
fn plain_codes(sink: &Sink) -> bool {
    sink.of == Type::I8 && sink.quantizer.status == 0
}

struct Fuser<'a> {
    places: &'a HashMap<Pointer, Pointer>,
    in_place: HashSet<Pointer>,
    multiprocessors: usize,
}

impl Fuser<'_> {
    /// Where a state is made that is kept at `before`: there at once, if that is where it goes.
    fn place(&mut self, after: Pointer, before: Pointer) -> Pointer {
        if before == 0 || self.places.get(&after) != Some(&before) {
            return after;
        }
        self.in_place.insert(after);
        before
    }

    /// Shares `count` channels or outputs among the blocks of one wave.
    fn share(&self, count: usize) -> (u32, usize) {
        let width = count.div_ceil(self.multiprocessors);
        (count.div_ceil(width) as u32, width)
    }

    fn norm_to_conv(&mut self, kernels: &[&Launch]) -> Option<Launch> {
        let [norm_launch, in_proj, history, conv_launch, ..] = kernels else {
            return None;
        };
        let norm: Norm = arg(norm_launch, 0)?;
        let (product, xz) = product_of_a_row(in_proj)?;
        let (x, before, after): (Source, Pointer, Pointer) =
            (arg(history, 0)?, arg(history, 1)?, arg(history, 2)?);
        let [taps, channels, length, rows] = [3, 4, 5, 6].map(|i| arg::<i32>(history, i));
        let (conv, out): (Conv, Sink) = (arg(conv_launch, 0)?, arg(conv_launch, 1)?);
        let real = conv_launch.name.strip_prefix("conv_silu_")?;
        let (real, alone) = match real.strip_prefix("packed_") {
            Some(real) => (real, conv_launch.grid[2] == 1),
            None => (real, arg::<i64>(conv_launch, 2)? == 1),
        };
        let fits = norm_launch.name == "rms_norm"
            && norm.rows == 1
            && norm.torch_device == 0
            && plain_codes(&norm.out)
            && product.x == norm.out.data
            && product.k == norm.m
            && product.n == 2 * conv.channels
            && plain_codes(&xz)
            && history.name == "conv_last_rows"
            && [taps?, channels?, length?, rows?] == [conv.taps, conv.channels, 1, conv.taps]
            && (x.data, x.of) == (xz.data, Type::I8)
            && before != 0
            && alone
            && conv.length == 1
            && (conv.x.data, conv.x.of, conv.scales) == (xz.data, Type::I8, 0)
            && conv.before == before + conv.channels as Pointer
            && plain_codes(&out);
        if !fits {
            return None;
        }
        let (blocks, width) = self.share(conv.channels as usize);
        let m = up_to_16(norm.m as usize);
        let shared = 13 * m + width;
        let after = self.place(after, before);
        (shared <= MAX_SHARED).then(|| Launch {
            file: "decode",
            name: format!("norm_to_conv_{real}"),
            grid: [blocks, 1, 1],
            threads: (2 * width * 32).min(MOST_THREADS) as u32,
            shared: shared as u32,
            args: vec![
                norm.keep(),
                product.keep(),
                xz.keep(),
                conv.keep(),
                out.keep(),
                after.keep(),
                (width as i32).keep(),
            ],
        })
    }

    fn projections_to_scan(&mut self, kernels: &[&Launch]) -> Option<Launch> {
        let [x_proj, dt_proj, scan_launch, ..] = kernels else {
            return None;
        };
        let (x_product, projected) = product_of_a_row(x_proj)?;
        let (dt_product, dt) = product_of_a_row(dt_proj)?;
        let mut scan: Scan = arg(scan_launch, 0)?;
        let inside =
            |at: Pointer| at >= projected.data && at < projected.data + x_product.n as Pointer;
        let fits = SCANS.contains(&scan_launch.name.as_str())
            && x_product.x % 16 == 0
            && plain_codes(&projected)
            && plain_codes(&dt)
            && inside(dt_product.x)
            && (dt_product.x - projected.data) % 16 == 0
            && scan_launch.grid[1] == 1
            && scan.length == 1
            && (scan.u.data, scan.u.of) == (x_product.x, Type::I8)
            && (scan.dt.data, scan.dt.of) == (dt.data, Type::I8)
            && [scan.b, scan.c]
                .iter()
                .all(|s| inside(s.data) && s.of == Type::I8)
            && scan.after.quantizer.status == 0
            && scan.states as usize <= STATES_AT_ONCE;
        if !fits {
            return None;
        }
        let (states, channels) = (scan.states as usize, scan.channels as usize);
        let width = STATES_AT_ONCE / states;
        let codes = [x_product.k, x_product.n, dt_product.k].map(|n| up_to_16(n as usize));
        let shared = codes.iter().sum::<usize>()
            + up_to_16(width)
            + 4 * CHUNK * (width * states + 2 * width + 2 * states);
        if shared > MAX_SHARED {
            return None;
        }
        scan.after.data = self.place(scan.after.data, scan.before.data);
        let formula = scan_launch.name.strip_prefix("scan_")?;
        Some(Launch {
            file: "decode",
            name: format!("projections_to_scan_{formula}"),
            grid: [channels.div_ceil(width) as u32, 1, 1],
            threads: SCAN_THREADS as u32,
            shared: shared as u32,
            args: vec![
                x_product.keep(),
                projected.keep(),
                dt_product.keep(),
                dt.keep(),
                scan.keep(),
                (width as i32).keep(),
            ],
        })
    }

    fn rotation_to_out(&mut self, kernels: &[&Launch]) -> Option<Launch> {
        let [rotation, out_proj, ..] = kernels else {
            return None;
        };
        let (y, rotated): (Source, Sink) = (arg(rotation, 0)?, arg(rotation, 1)?);
        let rows: i64 = arg(rotation, 2)?;
        let (base, block, factor): (usize, i32, f32) =
            match rotation.name.strip_prefix("rotate_")? {
                "12x128" => (12, 128, arg(rotation, 3)?),
                base => (base.parse().ok()?, arg(rotation, 3)?, arg(rotation, 4)?),
            };
        let (product, out) = product_of_a_row(out_proj)?;
        let length = base * block as usize;
        let shared = up_to_16(length) + super::step::hadamard::shared_bytes(length);
        let fits = rows == 1
            && plain_codes(&rotated)
            && product.x == rotated.data
            && product.k as usize == length
            && shared <= MAX_SHARED;
        if !fits {
            return None;
        }
        let (blocks, width) = self.share(product.n as usize);
        Some(Launch {
            file: "decode",
            name: format!("rotation_to_out_{base}"),
            grid: [blocks, 1, 1],
            threads: ROTATION_THREADS as u32,
            shared: shared as u32,
            args: vec![
                y.keep(),
                rotated.keep(),
                block.keep(),
                factor.keep(),
                product.keep(),
                out.keep(),
                (width as i32).keep(),
            ],
        })
    }
}
