#![no_main]

#[path = "../alone.rs"]
mod alone;
#[path = "../harness.rs"]
mod harness;

use alone::{alone, in_time};
use harness::{readers::QUAMBA, run};

libfuzzer_sys::fuzz_target!(init: alone(), |data: &[u8]| in_time(|| run(&QUAMBA, data)));
