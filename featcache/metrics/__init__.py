"""Honest scores: splits and folds that keep together what belongs together, metrics with intervals."""
