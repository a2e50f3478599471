"""Stored vectors into a scored head, and a head into answers: dataset, hold-out, fit, evaluate, compare, sweep."""
