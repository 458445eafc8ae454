"""The trainers of the miniature models, one file a model; `jobs/train_miniature.py` runs them."""
