"""The engine of ot_notebook: fine-tunes diffusion models, knows nothing of notebooks."""
