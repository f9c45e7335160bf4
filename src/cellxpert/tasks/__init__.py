"""What a trained network is for: results as arrays, no AnnData."""
