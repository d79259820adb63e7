"""What made the embedded assets; nothing here is needed to use them."""
