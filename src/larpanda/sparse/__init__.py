"""Points on a lattice: tensors in, tensors out; no detector, no model."""
