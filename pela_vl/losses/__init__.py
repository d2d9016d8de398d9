"""Loss functions: tensors in, scalars out."""
