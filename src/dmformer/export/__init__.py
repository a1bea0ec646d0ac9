"""Models in files for other runtimes, written and checked with PyTorch; `runtimes` reads them without it.

`formats`, `preprocessing` (what may go into the graph before the model), `check`, `quantise`, `write` (all of it
together).
"""
