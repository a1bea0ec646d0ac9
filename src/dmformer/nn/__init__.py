"""What models are made of: skeleton, layers, mixers, kernels, and the fused form; they know of no task."""
