"""Tensor-only kernels: the same arithmetic as the framework's operators, arranged to run faster."""
