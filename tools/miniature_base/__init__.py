"""Makes the miniature's base model, `rbft/miniature/base`, anew."""
