"""One publisher's format a file, found by name: `read(source, split, root)` yields examples and rejects."""
