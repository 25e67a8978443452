"""Readers of measured kernel times: `<gpu>/<family>/<engine>/<version>/*.parquet` under a root that callers name."""
