"""GGUF files: checked, mapped, and read as a checkpoint of Hugging Face's would be."""
