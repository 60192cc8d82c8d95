"""Shards: tar archives of samples, in the convention of webdataset, with a manifest that says what is in them."""
