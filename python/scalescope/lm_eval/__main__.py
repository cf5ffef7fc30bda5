"""`python -m scalescope.lm_eval`: the model is registered once, under its importable name."""

from . import main

main()
