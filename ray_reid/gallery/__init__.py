"""Galleries: made from embeddings, changed while they are read, and searched."""
