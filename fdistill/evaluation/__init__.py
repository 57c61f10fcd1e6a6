"""Judging a generator: metrics, features, reports, the collapse alarm, diagnosis. It imports data and below."""
