"""Images: decoding, sets of them, and loaders whose randomness depends on the seed, the epoch and the image alone."""
