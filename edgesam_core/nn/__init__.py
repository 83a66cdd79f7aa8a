"""EdgeSAM in PyTorch, for training and export. Serving never imports this package."""
