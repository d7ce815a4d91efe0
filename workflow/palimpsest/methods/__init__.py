"""Continual-learning methods, one part a file; a method is a composition of parts."""
