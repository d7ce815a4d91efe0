"""Small trees in a publisher's exact formats, made up: `generate(out, seed)` writes one."""
