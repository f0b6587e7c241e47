"""Speed: dense, pruned and ideal side by side, against the bars that the project sets itself."""
