"""Weights: models with weights, checkpoints, and the names and files of other code bases."""
