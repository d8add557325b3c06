"""Measuring and explaining: figures with intervals, slices, the report, and what moved a score."""
