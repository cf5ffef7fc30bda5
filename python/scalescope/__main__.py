"""The command `scalescope`."""

import sys

from ._scalescope import main as _main


def main() -> int:
    """Runs the command line of this process; its exit code."""
    return _main(["scalescope", *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
