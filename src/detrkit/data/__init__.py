"""Datasets: reading, checking, converting, augmenting and batching."""
