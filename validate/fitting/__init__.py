"""Fits of the kernel families' parameters on a small seeded part of measured rows, and their errors on all others."""
