//! Instruction sets. A kernel is written once, in scalar Rust; [`dispatch`] compiles that one body
//! for every instruction set below and picks the best one the machine has. Rust never contracts,
//! reorders or relaxes float operations, so every variant gives the same bits;
//! `sim/tests/kernels_match_scalar.rs` checks it.
//!
//! Threads are started outside, kernels are dispatched inside: a closure handed to another thread
//! does not inherit the instruction set of the function that made it.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};

/// An instruction set that kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Isa {
    /// What the target guarantees (SSE2 on x86-64, NEON on AArch64).
    Baseline = 0,
    /// AVX2 with FMA and F16C.
    Avx2 = 1,
    /// AVX-512 F, BW, DQ, VL beside AVX2.
    Avx512 = 2,
    /// AVX-512 VNNI beside that: four INT8 products a lane in one instruction. Only the INT8 matrix
    /// product differs from [`Isa::Avx512`].
    Avx512Vnni = 3,
    /// AVX-512 VBMI beside that: permutations of bytes, which read the special-function unit's tables.
    Avx512Vbmi = 4,
    /// AMX with INT8 beside that: products of tiles. Only the INT8 matrix product differs from
    /// [`Isa::Avx512Vbmi`].
    Amx = 5,
}

impl Isa {
    /// Every instruction set this machine has, weakest first.
    pub fn available() -> &'static [Isa] {
        static FOUND: OnceLock<Vec<Isa>> = OnceLock::new();
        FOUND.get_or_init(|| {
            #[allow(unused_mut)]
            let mut found = vec![Isa::Baseline];
            #[cfg(target_arch = "x86_64")]
            {
                let avx2 = is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c");
                if avx2 {
                    found.push(Isa::Avx2);
                }
                if avx2
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
                {
                    found.push(Isa::Avx512);
                    if is_x86_feature_detected!("avx512vnni") {
                        found.push(Isa::Avx512Vnni);
                        if is_x86_feature_detected!("avx512vbmi") {
                            found.push(Isa::Avx512Vbmi);
                            if has_amx() {
                                found.push(Isa::Amx);
                            }
                        }
                    }
                }
            }
            found
        })
    }

    /// The instruction set in use: the best one, unless [`Isa::limit`] lowered it.
    pub fn current() -> Isa {
        let limit = LIMIT.load(Ordering::Relaxed);
        *Self::available()
            .iter()
            .rfind(|isa| **isa as u8 <= limit)
            .unwrap_or(&Isa::Baseline)
    }

    /// Lowers the instruction set for the whole process (tests and benches compare variants; the
    /// numbers are the same by construction).
    pub fn limit(self) {
        LIMIT.store(self as u8, Ordering::Relaxed);
    }
}

/// Whether the processor has AMX with INT8 and the system lets this process use it.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn has_amx() -> bool {
    use std::arch::x86_64::{__cpuid, __cpuid_count, __get_cpuid_max};
    /// Bits of leaf 7, register EDX: tiles, and their INT8 products.
    const TILE_AND_INT8: u32 = 1 << 24 | 1 << 25;
    /// Bit of leaf 1, register ECX: the system saves the registers that `xgetbv` names.
    const OSXSAVE: u32 = 1 << 27;
    /// Bits of that register: the configuration and the data of tiles.
    const TILE_STATE: u32 = 1 << 17 | 1 << 18;
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;

    if __get_cpuid_max(0).0 < 7
        || __cpuid_count(7, 0).edx & TILE_AND_INT8 != TILE_AND_INT8
        || __cpuid(1).ecx & OSXSAVE == 0
    {
        return false;
    }
    let enabled: u32;
    // SAFETY: `xgetbv` of register 0 is there where OSXSAVE is set, and only reads.
    unsafe {
        std::arch::asm!("xgetbv", in("ecx") 0, out("eax") enabled, out("edx") _,
            options(nomem, nostack, preserves_flags));
    }
    // Linux hands out the 8 KiB of tile data only to processes that ask.
    // SAFETY: this call takes numbers and changes what this process may use.
    enabled & TILE_STATE == TILE_STATE
        && unsafe {
            libc::syscall(
                libc::SYS_arch_prctl,
                ARCH_REQ_XCOMP_PERM,
                XFEATURE_XTILEDATA,
            )
        } == 0
}

#[cfg(all(target_arch = "x86_64", not(target_os = "linux")))]
fn has_amx() -> bool {
    false
}

static LIMIT: AtomicU8 = AtomicU8::new(u8::MAX);

/// A loop over data that profits from wide instructions. Implementations mark `run`, and what it
/// calls, `#[inline(always)]`, so that each instruction set gets its own copy.
pub trait Kernel {
    /// What the loop returns.
    type Output;
    /// The loop.
    fn run(self) -> Self::Output;
}

/// Runs a kernel with the best instruction set of this machine.
pub fn dispatch<K: Kernel>(kernel: K) -> K::Output {
    match Isa::current() {
        Isa::Baseline => kernel.run(),
        // SAFETY: `Isa::current` only returns a set that was detected on this machine.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => unsafe { on_avx2(kernel) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 | Isa::Avx512Vnni | Isa::Avx512Vbmi | Isa::Amx => unsafe { on_avx512(kernel) },
        #[cfg(not(target_arch = "x86_64"))]
        _ => kernel.run(),
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn on_avx2<K: Kernel>(kernel: K) -> K::Output {
    kernel.run()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
fn on_avx512<K: Kernel>(kernel: K) -> K::Output {
    kernel.run()
}
