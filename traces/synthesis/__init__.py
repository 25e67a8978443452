"""Traces made to resemble a real one, of any length and shape."""
