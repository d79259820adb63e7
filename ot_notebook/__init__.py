"""Fine-tune diffusion models in a notebook."""
