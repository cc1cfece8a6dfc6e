"""Stages: what trains, from what, by which losses."""
