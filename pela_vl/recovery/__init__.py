"""PELA's intermediate pre-training: frozen teacher, feature distillation, weight perturbation."""
