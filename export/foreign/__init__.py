"""Detectors that others built: recognised, proved on labels, written as files of edge."""
