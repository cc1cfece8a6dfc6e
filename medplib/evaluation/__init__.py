"""Scores, figures with intervals, and reports. Metrics are pure functions of what is stored per case."""
