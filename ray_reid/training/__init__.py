"""Images and labels to weights: samplers, the loader, losses, the loop, Ray Train."""
