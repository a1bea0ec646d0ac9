"""`python -m dmformer` and `torchrun -m dmformer`: the same as the `dmformer` command."""

from .cli import main

main()
