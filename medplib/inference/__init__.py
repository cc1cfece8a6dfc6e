"""Trained checkpoints that answer."""
