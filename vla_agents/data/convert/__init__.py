"""Datasets made of datasets, between all formats."""
