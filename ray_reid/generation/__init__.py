"""Generated images: adapt, describe, generate, inpaint, review."""
