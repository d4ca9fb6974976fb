"""Evaluation of a model: metrics over a split, diagnosis of its codes, pictures."""
