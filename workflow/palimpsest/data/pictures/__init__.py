"""The demo's pictures, drawn by our code from a seed: 64 x 64 pixels, 16 cells of 16 pixels."""
