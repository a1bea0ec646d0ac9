"""Models in files for other runtimes: written and checked with PyTorch, used without it.

Used: `card` (what a file says of itself), `runtimes`, `exported`; these import no torch. Written: `formats`,
`preprocessing` (what may go into the graph before the model), `check`, `quantise`, `write` (all of it together).
"""
