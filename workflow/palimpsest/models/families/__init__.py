"""One family of LMMs a file, found by name: `load(model)` gives its LMM."""
