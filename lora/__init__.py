"""The tensors of LoRA files: reading them, and the mathematics of every adapter."""
