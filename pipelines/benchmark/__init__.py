"""A load generator for OpenAI-compatible servers: it speaks HTTP alone, and knows nothing of this package's own."""
