"""Shards: tar archives of samples in webdataset's convention, with a manifest of their content."""
