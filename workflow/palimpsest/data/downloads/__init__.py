"""What config/downloads/<name>.yaml describes -> results/downloads/<name>/."""
