"""Model definitions: plain torch modules built from parts and numbers."""
