"""Mathematics of ranking: metrics, protocols, re-ranking, refinement, open-set thresholds."""
