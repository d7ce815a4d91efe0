"""One stage: from a parent's stage directory to its own."""
