"""The HTTP application: an OpenAI-compatible endpoint around a pipeline."""
