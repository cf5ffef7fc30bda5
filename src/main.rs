//! The program; all of it is in the library, where tests and fuzz targets reach it.

#[allow(unsafe_code)] // an allocator
mod out_of_memory;

fn main() -> std::process::ExitCode {
    scalescope::main()
}
