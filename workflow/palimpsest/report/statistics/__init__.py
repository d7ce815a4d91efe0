"""The arithmetic of a report: aggregates by formula, and intervals by resampling."""
