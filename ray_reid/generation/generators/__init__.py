"""Generators: what each one asks of a diffusion model, and the stages that make its images."""
