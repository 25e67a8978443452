"""Routing captured from real runs: `own` trains a small MoE model from scratch, `hf` hooks Hugging Face models."""
