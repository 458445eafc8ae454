"""Many trainings side by side: comparisons of arms, and sweeps on Ray Tune."""
