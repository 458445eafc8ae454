"""Data sets: files to observations, a look at them before training, and exports."""
