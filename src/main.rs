//! The program; all of it is in the library, where tests and fuzz targets reach it.

#[allow(unsafe_code)] // an allocator
mod out_of_memory;
#[cfg(unix)]
#[allow(unsafe_code)] // a signal handler
mod truncated;

fn main() -> std::process::ExitCode {
    scalescope_sim::kernels::pages::keep_freed();
    #[cfg(unix)]
    truncated::install();
    scalescope::main()
}
