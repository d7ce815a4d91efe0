"""A language model rates the answers of a cell. It reads predictions, and sees no picture."""
