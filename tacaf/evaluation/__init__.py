"""Scoring: features and protocols in, rank-k, mAP and mINP out; extraction over ranks; the run's report."""
