"""Language models that carry the vision tower."""
