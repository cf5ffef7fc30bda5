"""Builds rtl/requantize.sv in a folder (the first argument, or build/ here) and runs the testbench."""

import os
import pathlib
import sys

try:
    from cocotb_tools.check_results import get_results
    from cocotb_tools.runner import get_runner
except ImportError:  # cocotb 1
    from cocotb.runner import get_results, get_runner

HERE = pathlib.Path(__file__).resolve().parent


def main() -> int:
    build = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else HERE / "build")
    runner = get_runner(os.environ.get("SIM", "icarus"))
    runner.build(
        sources=[HERE.parents[1] / "rtl" / "requantize.sv"],
        hdl_toplevel="requantize",
        build_dir=build,
        always=True,
    )
    results = runner.test(
        hdl_toplevel="requantize", test_module="test_requantize", test_dir=HERE, build_dir=build, results_xml=str(build / "results.xml")
    )
    tests, failed = get_results(results)
    print(f"{tests} tests, {failed} failed")
    return int(failed > 0 or tests == 0)


if __name__ == "__main__":
    sys.exit(main())
