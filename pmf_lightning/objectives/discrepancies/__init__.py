"""Discrepancies between a set of generated features and real features, for training by distribution matching."""
