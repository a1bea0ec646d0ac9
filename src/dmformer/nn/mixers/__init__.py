"""Token mixers: one class per file, each a callable dim -> module that keeps the shape (B, C, H, W)."""
