"""One small file per model family: where its parts are and how its visual tokens are laid out. No algorithm."""
