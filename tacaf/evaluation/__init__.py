"""Scoring of features by protocols (rank-k, mAP, mINP), and extraction of features over ranks."""
