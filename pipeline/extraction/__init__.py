"""Extraction in detail: inputs, fetching, shards and their ledgers, part files of features, failures."""
