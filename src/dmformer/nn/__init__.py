"""Building blocks of the models: skeleton, layers, mixers, kernels and the fused form; independent of any task."""
