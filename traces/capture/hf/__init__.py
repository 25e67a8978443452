"""Routing captured from Hugging Face models while they run."""
