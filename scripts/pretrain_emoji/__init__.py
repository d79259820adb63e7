"""Makes the miniature text-to-image model that ships with the package."""
