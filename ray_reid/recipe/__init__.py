"""What a person may write: a recipe, a frozen model for each of its sections, and sweeps."""
