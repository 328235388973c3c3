"""Frozen models and trained maps between their features, folded into one model."""
