//! The program; all of it is in the library, where tests and fuzz targets reach it.

fn main() -> std::process::ExitCode {
    scalescope::main()
}
