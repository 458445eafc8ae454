"""A trained model to embeddings, figures, pictures and the report."""
