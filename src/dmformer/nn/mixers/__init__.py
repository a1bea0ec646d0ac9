"""Token mixers: one class a file, each a callable dim -> module that keeps the shape (B, C, H, W)."""
